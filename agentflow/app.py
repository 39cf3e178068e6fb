"""The application's side: register code, submit jobs, run everything in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter
from starlette.applications import Starlette
from tortoise.backends.base.client import BaseDBAsyncClient, TransactionalDBClient
from tortoise.transactions import in_transaction

from agentflow.core.limits import Limit
from agentflow.core.policy import Policy
from agentflow.core.providers import Provider, Task
from agentflow.core.results import ErrorInfo, Result
from agentflow.core.submission import JobSpec, NewJob
from agentflow.errors import JobFailed, JobTimeout, SettingsError, UsageError
from agentflow.plugins.catalogue import Catalogue
from agentflow.plugins.discovery import discover
from agentflow.plugins.limiting import Limits
from agentflow.plugins.pricelist import read_prices
from agentflow.runtime import Runtime
from agentflow.settings import Settings, load_settings
from agentflow.store.database import Models
from agentflow.store.transactions import current_transaction
from agentflow.telemetry import traces
from agentflow.types import DEFAULT_TENANT, JobId, Json, JsonObject
from agentflow.web.context import Context
from agentflow.web.jobs import command
from agentflow.web.live import wait_final
from agentflow.web.measuring import Measured
from agentflow.web.server import create_web
from agentflow.worker.callbacks import callback_provider
from agentflow.writer.handlers import HandlerFunction, Handlers

H = TypeVar("H", bound=HandlerFunction)
F = TypeVar("F", bound=Callable[..., Any])

_RESULT: TypeAdapter[Result] = TypeAdapter(Result)
_ERROR: TypeAdapter[ErrorInfo] = TypeAdapter(ErrorInfo)


class AgentFlow:
    """agentflow inside an application. Making one does no I/O; `lifespan` starts it.

    `models` are modules with the application's own Tortoise models, which live in the same
    database; `migrations` is their migrations' package (without: missing tables are created).
    `tortoise` takes the `apps` of an existing Tortoise configuration instead. `providers` are
    added to those of the installed plugins; `plugins` limits the latter to these names.
    `policies` changes fields of a task's `Policy`: `{"replicate.predict": {"deadline": 600}}`.
    `limits` takes the place of what a plugin declares: `{"replicate": Limit(concurrent=8)}`.
    """

    def __init__(
        self,
        *,
        models: Sequence[str] = (),
        migrations: str | None = None,
        tortoise: JsonObject | None = None,
        providers: Sequence[Provider] = (),
        plugins: Sequence[str] | None = None,
        policies: Mapping[str, Mapping[str, Any]] | None = None,
        limits: Mapping[str, Limit | Sequence[Limit] | None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.models = Models(models, migrations, (tortoise or {}).get("apps"))
        self.providers = list(providers)
        self._local: dict[str, Provider] = {}
        self._plugins = plugins
        self._policies = dict(policies or {})
        self._limits = dict(limits or {})
        self._settings = settings
        self.handlers = Handlers()
        self._runtime: Runtime | None = None
        self._stopping = False
        self._web = create_web()
        self._web.add_middleware(Measured)

    # -- registering -----------------------------------------------------------------------------

    def on(self, task: str, kind: str, *, after_commit: bool = False) -> Callable[[H], H]:
        """Run the function when a job of `task` (or `*`) is `succeeded`, `failed`, `canceled`,
        `expired`, or makes `progress`.

        It is called as `function(event, tx)` in the writer's transaction and may return `JobSpec`s
        to start; with `after_commit`, as `function(event)`, later and at least once.
        """

        def register(function: H) -> H:
            self.handlers.on(task, kind, function, after_commit=after_commit)
            return function

        return register

    def on_webhook(
        self, provider: str, type: str | None = None, *, after_commit: bool = False
    ) -> Callable[[H], H]:
        """Run the function once for each verified delivery of the provider, job or no job."""

        def register(function: H) -> H:
            self.handlers.on_webhook(provider, type, function, after_commit=after_commit)
            return function

        return register

    def task(
        self,
        name: str,
        *,
        input: type[BaseModel] | None = None,
        policy: Policy | None = None,
        description: str = "",
        limits: Limit | Sequence[Limit] = (),
    ) -> Callable[[F], Task[F]]:
        """Make a function of the application a task, `group.name`."""
        group, _, rest = name.partition(".")
        if not rest:
            raise UsageError(f"A task's name is group.name, as in crm.{name}")
        provider = self._local.get(group)
        if provider is None:
            provider = self._local[group] = Provider(group, local=True)
            self.providers.append(provider)
        return provider.task(
            rest, input=input, policy=policy, description=description, limits=limits
        )

    # -- using -----------------------------------------------------------------------------------

    def transaction(self) -> AbstractAsyncContextManager[BaseDBAsyncClient]:
        """A transaction for the application's rows and the jobs that belong to them.

        Leaving the block commits, raising in it undoes everything. It is rolled back if it is held
        longer than `AGENTFLOW_TRANSACTION_LIMIT`, since nobody else can write meanwhile.
        """
        self._started()
        return in_transaction("default")

    async def submit(
        self,
        task: str,
        input: Json = None,
        *,
        using_db: BaseDBAsyncClient | None = None,
        tenant: str = DEFAULT_TENANT,
        **options: Any,
    ) -> JobHandle:
        """Store a job and return its handle; it starts after the commit.

        `using_db` is the transaction it belongs to; `options` are those of `JobSpec`. Raises
        `InvalidInput`, `Conflict` for an idempotency key used otherwise, `StoreUnavailable`.
        """
        runtime = self._started()
        with traces.span(f"submit {task}", kind=traces.SpanKind.PRODUCER, task=task):
            new = runtime.prepare(JobSpec(task, input, **options), tenant)
            return await self._store(runtime, new, using_db)

    async def adopt(
        self,
        task: str,
        *,
        external_id: str,
        using_db: BaseDBAsyncClient | None = None,
        tenant: str = DEFAULT_TENANT,
        **options: Any,
    ) -> JobHandle:
        """Follow a call that was made elsewhere; `options` and what is raised are as in `submit`.

        A webhook that came before is found again.
        """
        runtime = self._started()
        with traces.span(f"adopt {task}", kind=traces.SpanKind.PRODUCER, task=task):
            new = runtime.prepare_adopted(JobSpec(task, **options), external_id, tenant)
            return await self._store(runtime, new, using_db)

    def job(self, id: str, *, tenant: str = DEFAULT_TENANT) -> JobHandle:
        """The handle of a job submitted before."""
        return JobHandle(self._started().context, id, tenant)

    async def _store(
        self, runtime: Runtime, new: NewJob, using_db: BaseDBAsyncClient | None
    ) -> JobHandle:
        if using_db is None:
            stored = await runtime.intake.add_job(new)
        elif isinstance(using_db, TransactionalDBClient):
            stored = await runtime.intake.add_job_in(using_db, new)
        else:
            raise UsageError(
                "`using_db` takes the `tx` of `async with app.transaction() as tx`, not a"
                " connection: the job would start even if what it belongs to were undone."
            )
        return JobHandle(runtime.context, stored.id, new.job.tenant)

    # -- running ---------------------------------------------------------------------------------

    @property
    def asgi(self) -> Starlette:
        """The job API and the webhooks, to be mounted; needs `lifespan` to run."""
        return self._web

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Everything from the data directory's lock to the last confirmed outcome."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Raises `SettingsError`, also when another process uses the data directory, and
        `UsageError` for policies that fit no task."""
        settings = self._settings or load_settings()
        catalogue = Catalogue(discover(self._plugins), self.providers, settings.public_url)
        await self.run_on(self.assemble(settings, catalogue))

    def assemble(self, settings: Settings, catalogue: Catalogue) -> Runtime:
        """The parts for `run_on`; the test kit gives a catalogue of its own."""
        callbacks = callback_provider(settings)
        if callbacks is not None:
            catalogue.add(callbacks)
        catalogue.adjust(self._policies)
        if settings.prices is not None:
            catalogue.price(read_prices(settings.prices))
        limits = self._limits_in(settings, catalogue)
        return Runtime(settings, self.models, catalogue, self.handlers, limits)

    def _limits_in(self, settings: Settings, catalogue: Catalogue) -> Limits:
        """An operator's come before the application's, and those before a plugin's."""
        Limits(catalogue, self._limits)
        try:
            limits = Limits(catalogue, self._limits, settings.limits or {})
        except UsageError as error:
            raise SettingsError(f"AGENTFLOW_LIMITS: {error.message}") from None
        return limits

    async def run_on(self, runtime: Runtime) -> None:
        """Start these parts. Raises as `start` does."""
        if self._runtime is not None:
            raise UsageError("agentflow is started already")
        self._runtime = runtime
        try:
            await runtime.start()  # handlers of what the last process left behind may submit
        except BaseException:
            self._runtime = None
            raise
        self._web.state.gauges = runtime.gauges
        self._web.state.agentflow = runtime.context

    async def stop(self) -> None:
        """Hand back or finish what runs, confirm it, close. Safe to call twice."""
        runtime = self._runtime
        self._web.state.agentflow = None
        if runtime is None or self._stopping:
            return
        self._stopping = True
        try:
            await runtime.stop()  # outcomes that come in meanwhile have handlers, who may submit
        finally:
            self._runtime, self._stopping = None, False

    @property
    def runtime(self) -> Runtime:
        """The running parts. Raises `UsageError` before the start."""
        return self._started()

    def _started(self) -> Runtime:
        if self._runtime is None:
            raise UsageError(
                "agentflow is not started: run its lifespan, as in"
                " FastAPI(lifespan=app.lifespan), or `async with app.lifespan():`"
            )
        return self._runtime


class JobHandle:
    """A job submitted. Awaiting it gives its `Result`; it always ends, by its deadline at last."""

    def __init__(self, context: Context, id: str, tenant: str) -> None:
        self._context, self._tenant = context, tenant
        self.id = JobId(id)

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    async def status(self) -> JsonObject:
        """The job as the API shows it. Raises `NotFound`."""
        return await wait_final(self._context, self._tenant, self.id, 0.0)

    async def result(self, timeout: float | None = None) -> Result:
        """Wait for the end, at most `timeout` seconds. Raises `JobFailed` or `JobTimeout`."""
        if current_transaction() is not None:
            raise UsageError(
                "A transaction is open in this task: the job starts after its commit, so waiting"
                " for the result here would never end. Await the job after the `async with`."
            )
        seconds = 10 * 366 * 86_400.0 if timeout is None else timeout
        view = await wait_final(self._context, self._tenant, self.id, seconds)
        match view["status"]:
            case "succeeded":
                return _RESULT.validate_python(view["result"])
            case "failed" | "canceled" | "expired":
                error = _ERROR.validate_python(view["error"]) if view["error"] else None
                raise JobFailed(self.id, view["status"], error)
            case status:
                raise JobTimeout(f"Job {self.id} is still {status} after {timeout:g} seconds")

    async def cancel(self) -> None:
        """Ask for its end; `status` tells what came of it."""
        if current_transaction() is not None:
            raise UsageError(
                "A transaction is open in this task, and a cancel is a write of its own that would"
                " wait for it for ever. Cancel the job after the `async with`."
            )
        said = {"command": "cancel", "job": self.id}
        await command(self._context, self._tenant, said, job_id=self.id)


def standalone(app: AgentFlow) -> Starlette:
    """The application's API as a server of its own."""
    server = Starlette(lifespan=app.lifespan)
    server.router.default = app.asgi  # a Mount would not match a path with a line break
    return server
