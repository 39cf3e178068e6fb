"""The application's functions, and how they are run without harm to anybody else.

A handler runs in the writer's transaction, in a savepoint of its own and with a time limit; what
it returns are jobs to start. One that fails is rolled back, set aside with its traceback, and may
be retried on demand. With `after_commit` it is owed in a row and run later, at least once.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from agentflow.core.job import Status
from agentflow.core.providers import Delivery
from agentflow.core.results import ErrorInfo, Progress, Result
from agentflow.core.submission import JobSpec
from agentflow.errors import UsageError
from agentflow.types import JobId, Json

KINDS = frozenset({"succeeded", "failed", "canceled", "expired", "progress"})

MAX_TRIES = 10
"""How often an owed run is tried before it is set aside."""

STUBBORN = 0.5
"""Seconds a handler that is out of time has to stop when asked; then nobody waits for it."""

_stubborn: set[asyncio.Task[Any]] = set()


class TooSlow(UsageError):
    """A handler took longer than its time limit."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as a handler sees it. `entity_type` and `entity_id` are the halves of `entity`."""

    id: JobId
    task: str
    status: Status
    tenant: str
    attempt: int
    entity: str | None
    tags: Sequence[str]
    metadata: dict[str, Json]
    input: Json

    @property
    def entity_type(self) -> str | None:
        return self.entity.split(":", 1)[0] if self.entity else None

    @property
    def entity_id(self) -> str | None:
        return self.entity.split(":", 1)[1] if self.entity else None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What happened to a job: `kind` is its final status, or `progress`."""

    kind: str
    job: JobView
    at: datetime
    result: Result | None = None
    error: ErrorInfo | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified delivery, for those who only want the ingestion."""

    delivery: Delivery
    type: str | None
    at: datetime


HandlerEvent: TypeAlias = JobEvent | WebhookEvent
Wanted: TypeAlias = JobSpec | Iterable[JobSpec] | None
HandlerFunction: TypeAlias = Callable[..., Wanted | Awaitable[Wanted]]


@dataclass(frozen=True, slots=True)
class Handler:
    """`function(event, tx)`, or `function(event)` after the commit."""

    name: str
    function: HandlerFunction
    after_commit: bool = False

    async def call(self, *args: Any, seconds: float) -> list[JobSpec]:
        """Run it for at most `seconds` and return the jobs it wants. Raises what it raises, and
        `UsageError`: `TooSlow`, or for what can be no answer.

        It runs in a task of its own, so that whatever it does to its task, the writer's goes on.
        """
        task = asyncio.create_task(self._run(args), name=self.name)
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            late = not task.done()
            if late:
                task.cancel()
                await asyncio.wait({task}, timeout=STUBBORN)
        if late:
            raise TooSlow(f"{self.name} took longer than {seconds:g} seconds") from _place(task)
        if task.cancelled():
            raise UsageError(f"{self.name} was canceled by its own code") from _place(task)
        return self._specs(task.result())

    async def _run(self, args: tuple[Any, ...]) -> Wanted:
        try:
            answer = self.function(*args)
            return await answer if inspect.isawaitable(answer) else answer
        except SystemExit as end:  # it would end the whole process
            raise UsageError(f"{self.name} called sys.exit()") from end

    def _specs(self, wanted: Any) -> list[JobSpec]:
        if wanted is None:
            return []
        specs = [wanted]
        if isinstance(wanted, Iterable) and not isinstance(wanted, (str, bytes, dict)):
            specs = list(wanted)
        for spec in specs:
            if not isinstance(spec, JobSpec):
                said = type(spec).__name__
                raise UsageError(f"{self.name} returned {said}: return JobSpecs, or nothing")
        return specs


def _place(task: asyncio.Task[Any]) -> BaseException | None:
    """The cancellation, whose traceback tells where the task was; None if it goes on even so."""
    if not task.done():
        _stubborn.add(task)  # nobody else refers to it
        task.add_done_callback(_forget)
    elif not task.cancelled():
        return task.exception()
    else:
        try:
            task.result()
        except asyncio.CancelledError as canceled:
            return canceled
    return None


def _forget(task: asyncio.Task[Any]) -> None:
    _stubborn.discard(task)
    if not task.cancelled():
        task.exception()


@dataclass(slots=True)
class Handlers:
    """Which function is for what. Filled before the start."""

    by_task: dict[tuple[str, str], list[Handler]] = field(default_factory=dict)
    by_type: dict[tuple[str, str | None], list[Handler]] = field(default_factory=dict)
    names: dict[str, Handler] = field(default_factory=dict)

    def on(self, task: str, kind: str, function: HandlerFunction, *, after_commit: bool) -> None:
        """`task` may be `*`. Raises `UsageError` for an unknown kind, a name twice, or a function
        that cannot be called as it will be."""
        if kind not in KINDS:
            raise UsageError(f"{kind!r} is none of {', '.join(sorted(KINDS))}")
        handler = self._named(function, f"{task}:{kind}", after_commit)
        self.by_task.setdefault((task, kind), []).append(handler)

    def on_webhook(
        self, provider: str, type: str | None, function: HandlerFunction, *, after_commit: bool
    ) -> None:
        """`type` None means every delivery of the provider."""
        handler = self._named(function, f"webhook:{provider}:{type or '*'}", after_commit)
        self.by_type.setdefault((provider, type), []).append(handler)

    def for_job(self, task: str, kind: str) -> list[Handler]:
        return [*self.by_task.get((task, kind), ()), *self.by_task.get(("*", kind), ())]

    def for_webhook(self, provider: str, type: str | None) -> list[Handler]:
        found = list(self.by_type.get((provider, None), ()))
        return found if type is None else [*self.by_type.get((provider, type), ()), *found]

    def _named(self, function: HandlerFunction, what: str, after_commit: bool) -> Handler:
        module = getattr(function, "__module__", "?")
        name = f"{module}.{getattr(function, '__qualname__', repr(function))}@{what}"[:255]
        if name in self.names:
            raise UsageError(f"{name} is registered twice")
        _check_signature(name, function, after_commit)
        handler = Handler(name, function, after_commit)
        self.names[handler.name] = handler
        return handler


def _check_signature(name: str, function: HandlerFunction, after_commit: bool) -> None:
    args = ("event",) if after_commit else ("event", "tx")
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        raise UsageError(f"{name} is called as function({', '.join(args)})") from None
    except ValueError:  # some callables do not tell
        return


def explain(error: BaseException) -> str:
    """The traceback as text, at most 8,000 characters, the end of it being the telling part."""
    text = "".join(traceback.format_exception(error))[-8000:]
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def briefly(error: BaseException) -> str:
    """One line for the log."""
    return explain(error).rstrip().rpartition("\n")[2][:500]
