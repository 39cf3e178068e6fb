"""The parts of one process, put together, started in order and stopped in the reverse."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog
from tortoise.connection import get_connection
from tortoise.exceptions import BaseORMException

from agentflow.artifacts import artifact_store
from agentflow.clock import Clock
from agentflow.core.job import Status
from agentflow.core.providers import Task
from agentflow.core.submission import (
    CALLBACK_TASK,
    MAX_INPUT,
    JobSpec,
    NewJob,
    prepare,
    prepare_adopted,
)
from agentflow.errors import InvalidInput, NotFound
from agentflow.plugins.catalogue import Catalogue
from agentflow.plugins.limiting import Limits
from agentflow.settings import Settings
from agentflow.store.database import Database, DirectoryLock, Models, free_directory
from agentflow.store.intake import Doorbell, Intake
from agentflow.store.sql import Sql
from agentflow.store.transactions import detached
from agentflow.telemetry import traces
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.bus import Bus
from agentflow.transport.conversation import Message
from agentflow.transport.live import Limits as LiveLimits
from agentflow.transport.live import LocalLive
from agentflow.transport.local import LocalBroker, LocalConversation
from agentflow.types import JobId, new_id
from agentflow.web.context import Context
from agentflow.web.limiting import RateLimits
from agentflow.web.metrics import Gauges
from agentflow.web.sidedoor import side_door
from agentflow.worker.serving import Serving, cancel, register
from agentflow.worker.spool import Spool
from agentflow.worker.worker import Worker
from agentflow.writer.handlers import Handlers
from agentflow.writer.pruning import Pruner
from agentflow.writer.tools import Tools
from agentflow.writer.writer import CATCH_UP, Writer

if TYPE_CHECKING:
    from agentflow.transport.redis import RedisTransport

log = structlog.get_logger(__name__)

ROLES = frozenset({"web", "worker", "writer"})

CLOCK_EVERY = 10.0
"""Seconds between two looks at the database's clock."""

REDIS_EVERY = 0.25
"""Seconds between two looks whether Redis went out of reach."""


class Runtime:
    """The roles of one process: web, worker and writer, or one of them.

    The parts of a role that is not played are not there: a worker has no `database`, a web process
    no `writer`.
    """

    database: Database
    conversation: LocalConversation
    writer: Writer
    tools: Tools
    pruner: Pruner
    worker: Worker
    serving: Serving
    intake: Intake
    metrics_port: int
    """Where metrics are served, if they are by themselves."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        catalogue: Catalogue,
        handlers: Handlers,
        limits: Limits | None = None,
    ) -> None:
        self.settings, self.catalogue, self.handlers = settings, catalogue, handlers
        self.limits = limits or Limits(catalogue)
        self.roles = ROLES if settings.mode == "all" else frozenset({settings.mode})
        self.clock, self.bus = Clock(), Bus()
        self.lock = self._lock()
        self.artifacts = artifact_store(settings)
        self._tasks: list[asyncio.Task[None]] = []
        self.name = new_id("worker")
        self.live_limits = LiveLimits(settings.live_text, settings.live_memory, settings.live_keep)
        self.redis = self._redis()
        self.live = LocalLive(self.live_limits)
        self.broker: LocalBroker | RedisTransport = self.redis or LocalBroker(
            depth=self.limits.depth
        )
        if self.redis is None:
            self.conversation = LocalConversation()
        if self.roles - {"worker"}:
            role: Literal["writer", "web"] = "writer" if "writer" in self.roles else "web"
            self.database = Database(settings, models, role=role)
        self.intake = Intake(_Bell(self))
        self.metrics = Metrics(catalogue.tasks, catalogue.providers)
        if "writer" in self.roles:
            self._make_writer()
        if "worker" in self.roles:
            self._make_worker()
        self.gauges = Gauges(
            self.metrics,
            self.clock,
            queues=self.queues,
            redis=None if self.redis is None else self._redis_answers,
            database=self.database if self.roles - {"worker"} else None,
            limits=self.worker.room.figures if "worker" in self.roles else None,
        )
        self._beside = AsyncExitStack()
        self.context = Context(
            settings,
            self.catalogue,
            self.intake,
            self.bus,
            self.clock,
            self.artifacts,
            self.prepare,
            self.missing,
            self.redis.inlet if self.redis else self.live,
            rates=RateLimits(self._redis_url),
        )

    def _lock(self) -> DirectoryLock:
        """On the directory that is this process's own. Workers on one machine take one each, and
        find there what their predecessor did not get confirmed."""
        if self.settings.redis_url is not None and "worker" in self.roles:
            return free_directory(self.settings.data_dir, "worker")
        return DirectoryLock(self.settings.data_dir)

    def _redis(self) -> RedisTransport | None:
        url = self._redis_url
        if url is None:
            return None
        from agentflow.transport.redis import RedisTransport  # the embedded default has no Redis

        queues = sorted(self.catalogue.providers)
        if self.roles == {"worker"} and self.settings.queues:
            strangers = self.settings.queues.difference(queues)
            if strangers:
                log.warning("No plugin serves these queues", queues=sorted(strangers))
            queues = [q for q in queues if q in self.settings.queues]
        return RedisTransport(
            url, self.name, queues, self.bus, self._free, self.live_limits, self.limits.depth
        )

    def _make_writer(self) -> None:
        settings = self.settings
        self.tools = Tools(
            self.catalogue,
            self.handlers,
            self.prepare,
            self.broker.room,
            settings.handler_budget,
            settings.handler_timeout,
            settings.park_for,
        )
        heard = self.redis.writer_side if self.redis else self.conversation
        self.writer = Writer(
            self.tools, heard, self.broker, self.clock, self.told, shared=self.shared,
            metrics=self.metrics,
        )  # fmt: skip
        self.pruner = Pruner(
            self.clock.now,
            self.artifacts.delete,
            jobs=settings.keep_jobs,
            bodies=settings.keep_bodies,
            deliveries=settings.keep_deliveries,
        )
        if self.redis:
            self.redis.writer_side.gap = self._gap

    def _make_worker(self) -> None:
        settings = self.settings
        spoken = self.redis.worker_side if self.redis else self.conversation
        outlet = self.redis.outlet if self.redis else self.live
        self.worker = Worker(
            self.catalogue,
            spoken,
            self.artifacts,
            Spool(self.lock.directory / "spool.jsonl"),
            self.clock,
            id=self.name,
            max_result=settings.max_result,
            max_artifact=settings.max_artifact,
            allow_downloads=settings.allow_downloads,
            metrics=self.metrics,
            outlet=outlet if settings.live_text else None,
            limits=self.limits,
            ledger=self.redis.ledger if self.redis else None,
            concurrency=settings.concurrency,
        )
        if self.redis:
            self.redis.worker_side.stop = self.worker.stop_attempt
            self.redis.worker_side.freed = self.worker.room.ring
        else:
            assert isinstance(self.broker, LocalBroker), "one or the other"
            self.broker.calls.free = self._free
        self.worker.room.changed = self.broker.stir
        register(self.broker, self.worker)
        self.serving = Serving(self.broker, self.worker)

    @property
    def _redis_url(self) -> str | None:
        url = self.settings.redis_url
        return url.get_secret_value() if url else None

    @property
    def shared(self) -> bool:
        """Whether other processes may write to the same database."""
        return self.settings.database_url is not None

    def queues(self) -> dict[str, int]:
        """How many calls wait in the broker, by provider; in one process all wait together."""
        if self.redis is None:
            return {"all": sum(map(self.broker.length, self.catalogue.providers))}
        if self.redis.missing:
            return {}
        return {q: self.redis.length(q) for q in self.catalogue.providers}

    def _redis_answers(self) -> bool:
        return self.redis is not None and not self.redis.missing

    def _free(self, provider: str, handed: Mapping[str, int]) -> int:
        return self.worker.room.free(provider, handed)

    def _gap(self, lost: bool) -> None:
        self.writer.deaf(CATCH_UP, broker_is_empty=lost)

    def told(self, jobs: Sequence[JobId]) -> None:
        """After a commit, these jobs changed: tell those who wait, here and elsewhere."""
        self.bus.told(jobs)
        if self.redis:
            self.redis.writer_side.tell(jobs)

    def ring(self) -> None:
        """Something was stored for the writer to read."""
        if "writer" in self.roles:
            self.writer.ring()
        elif self.redis:
            self.redis.ring()

    def prepare(self, spec: JobSpec, tenant: str) -> NewJob:
        """Check a submission against the catalogue. Raises `InvalidInput`."""
        task = self._task(spec)
        new = prepare(
            spec,
            task,
            now=self.clock.now(),
            tenant=tenant,
            webhooks=self.catalogue.expects_webhooks(task.name),
            # What we say ourselves has its own limit: an end without its callback may not be.
            max_input=MAX_INPUT if task.name == CALLBACK_TASK else self.settings.max_input,
        )
        return replace(new, trace=traces.current())

    def prepare_adopted(self, spec: JobSpec, external_id: str, tenant: str) -> NewJob:
        """The same for a call made elsewhere."""
        task = self._task(spec)
        new = prepare_adopted(
            spec,
            task,
            external_id,
            now=self.clock.now(),
            tenant=tenant,
            webhooks=self.catalogue.expects_webhooks(task.name),
            max_input=self.settings.max_input,
        )
        return replace(new, trace=traces.current())

    def _task(self, spec: JobSpec) -> Task[Any]:
        try:
            task = self.catalogue.task(spec.task)
        except NotFound as unknown:
            fault = {"loc": "task", "msg": unknown.message}
            raise InvalidInput(unknown.message, detail={"errors": [fault]}) from None
        if spec.callback_url is not None and CALLBACK_TASK not in self.catalogue.tasks:
            fault = {"loc": "callback_url", "msg": "needs AGENTFLOW_CALLBACK_SECRET on the server"}
            raise InvalidInput("callback_url: " + fault["msg"], detail={"errors": [fault]})
        return task

    async def start(self) -> None:
        """Lock, open, hear what the last process left behind, then begin."""
        if self.roles & {"worker"} or not self.shared:  # the spool and SQLite have one owner
            self.lock.take()
        try:
            await self._show()
            await self._open()
            await self._begin()
        except BaseException:
            await self._end()
            raise
        self._announce()

    async def _show(self) -> None:
        """Metrics and health on their own port, from before the first thing that can fail."""
        settings = self.settings
        if settings.metrics_port is not None:
            door = side_door(
                self.context, self.gauges, settings.metrics_host, settings.metrics_port
            )
            self.metrics_port = await self._beside.enter_async_context(door)

    async def _open(self) -> None:
        if self.roles - {"worker"}:
            await self.database.open(migrate=self.roles == ROLES)
            if self.shared:
                await self._set_clock()
                self._tasks.append(spawn(self._keep_clock(), "agentflow-clock"))
        await self.artifacts.start()
        if self.redis:
            await self.redis.start(self.roles)
            self._tasks.append(spawn(self._watch_redis(), "agentflow-redis-watch"))

    async def _begin(self) -> None:
        if "writer" in self.roles:
            self._tasks.append(spawn(self.writer.run(), "agentflow-writer"))
            if self.shared:
                await self.writer.begin(broker_is_empty=self.redis is None)
            elif "worker" in self.roles:
                await self.worker.reports.recover()
                await self.writer.recover(self.conversation.report)
            self._tasks.append(spawn(self.writer.owed.run(), "agentflow-owed"))
            self._tasks.append(spawn(self.pruner.run(), "agentflow-pruner"))
        if "worker" in self.roles:
            if self.shared or self.redis:
                self._tasks.append(spawn(self.worker.reports.recover(), "agentflow-recovery"))
            self.serving.start()

    async def stop(self) -> None:
        if "worker" in self.roles:
            await self.serving.stop(self.settings.grace)
        await self.intake.close()
        if "writer" in self.roles:
            if self.redis:
                await self.redis.stop_hearing()
            await self.writer.stop()
        await self._end()

    def missing(self) -> list[str]:
        """What keeps this process from being ready."""
        tasks = [t for t in self._tasks if t.get_name() != "agentflow-recovery"]
        if "worker" in self.roles:
            tasks += self.serving.tasks
        said = [f"{task.get_name()} has stopped" for task in tasks if task.done()]
        said += self.redis.missing if self.redis else []
        return said or ([] if self._tasks or self.redis else ["not started"])

    async def _set_clock(self) -> None:
        await Sql(get_connection("default")).now(self.clock)

    async def _keep_clock(self) -> None:
        """Deadlines and alarms are kept by the database's clock, wherever they are set."""
        while True:
            await asyncio.sleep(CLOCK_EVERY)
            try:
                await self._set_clock()
            except BaseORMException as error:
                log.debug("The database does not tell the time", error=str(error)[:200])

    async def _watch_redis(self) -> None:
        answered = True
        while True:
            await asyncio.sleep(REDIS_EVERY)
            answers = self._redis_answers()
            if answered and not answers:
                self.metrics.redis_outages.inc()
            answered = answers

    async def _end(self) -> None:
        await self.context.rates.close()
        await cancel(self._tasks)
        if "worker" in self.roles:
            await self.worker.close()
        if self.redis:
            await self.redis.stop()
        if self.roles - {"worker"}:
            await self.database.close()
        await self._beside.aclose()
        self.lock.release()

    def _announce(self) -> None:
        for name, said in self.catalogue.problems.items():
            log.warning("Plugin left out", plugin=name, problem=said)
        for name, ready in self.catalogue.providers.items():
            if ready.webhook_problem:
                log.warning("Webhooks refused", provider=name, problem=ready.webhook_problem)
        for what in self._never_told():
            log.warning("Handler for nothing", on=what, problem="no plugin has it")
        if self.settings.public_url is None:
            log.info("AGENTFLOW_PUBLIC_URL is not set: no webhooks, polling only")

    def _never_told(self) -> Iterator[str]:
        """What handlers wait for that cannot come: a typing error, or a plugin left out."""
        handlers = self.handlers
        for task in {task for task, _ in handlers.by_task if task != "*"}:
            try:
                self.catalogue.task(task)
            except NotFound:
                yield task
        for provider in {provider for provider, _ in handlers.by_type}:
            try:
                self.catalogue.provider(provider)
            except NotFound:
                yield f"webhooks of {provider}"


class _Bell(Doorbell):
    """After the commit of a submit or a delivery."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._new: list[Message] = []
        self._sending: asyncio.Task[None] | None = None

    def room(self, queue: str) -> bool:
        return self._runtime.broker.room(queue) > len(self._new)

    def new_job(self, new: NewJob) -> None:
        """Straight to the broker if its next ring is set for later, else the writer sends it."""
        job = new.job
        metrics = self._runtime.metrics
        metrics.submitted[(metrics.task(job.task),)].inc()
        self._runtime.bus.told([job.id])  # its first entry is in the feed
        rung = job.check_at is not None and job.check_at > job.created_at
        if job.status is not Status.QUEUED or not rung:
            self._runtime.ring()
            return
        input = orjson.loads(new.input)
        self._new.append(
            Message(
                job.id, job.attempt, job.current.token, job.task, input, job.deadline,
                new.priority, new.trace, job.tenant,
            )
        )  # fmt: skip
        if self._sending is None or self._sending.done():
            self._sending = spawn(self._send(), "agentflow-bell")

    def inbox(self) -> None:
        self._runtime.ring()

    async def _send(self) -> None:
        while self._new:
            new, self._new = self._new, []
            await self._runtime.broker.send(new, ())


def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task of the process, outside of whatever transaction its starter is in."""
    return asyncio.create_task(work, name=name, context=detached())
