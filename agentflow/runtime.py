"""The parts of one process, put together, started in order and stopped in the reverse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import orjson
import structlog

from agentflow.artifacts import FolderStore
from agentflow.core.job import Status
from agentflow.core.providers import Task
from agentflow.core.submission import JobSpec, NewJob, prepare, prepare_adopted
from agentflow.errors import InvalidInput, NotFound
from agentflow.plugins.catalogue import Catalogue
from agentflow.settings import Settings
from agentflow.store.database import Database, DirectoryLock, Models
from agentflow.store.intake import Doorbell, Intake
from agentflow.transport.bus import Bus
from agentflow.transport.conversation import Message
from agentflow.transport.local import LocalBroker, LocalConversation
from agentflow.types import Clock
from agentflow.web.context import Context
from agentflow.worker.serving import Serving, register
from agentflow.worker.spool import Spool
from agentflow.worker.worker import Worker
from agentflow.writer.handlers import Handlers
from agentflow.writer.tools import Tools
from agentflow.writer.writer import Writer

log = structlog.get_logger(__name__)


class Runtime:
    """Web, worker and writer of one process on one data directory."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        catalogue: Catalogue,
        handlers: Handlers,
    ) -> None:
        self.settings = settings
        self.clock = Clock()
        self.bus = Bus()
        self.catalogue = catalogue
        self.lock = DirectoryLock(settings.data_dir)
        self.database = Database(
            settings.data_dir / "agentflow.db",
            models,
            synchronous=settings.synchronous,
            transaction_limit=settings.transaction_limit,
        )
        self.broker = LocalBroker()
        self.conversation = LocalConversation()
        self.artifacts = FolderStore(settings.data_dir / "artifacts")
        self.tools = Tools(
            self.catalogue,
            handlers,
            self.prepare,
            self.broker.room,
            settings.handler_budget,
            settings.handler_timeout,
            settings.park_for,
        )
        self.writer = Writer(self.tools, self.conversation, self.broker, self.clock, self.bus.told)
        self.worker = Worker(
            self.catalogue,
            self.conversation,
            self.artifacts,
            Spool(settings.data_dir / "spool.jsonl"),
            self.clock,
            max_result=settings.max_result,
            max_artifact=settings.max_artifact,
            allow_downloads=settings.allow_downloads,
        )
        register(self.broker, self.worker)
        self.serving = Serving(self.broker, self.worker, settings.concurrency)
        self.intake = Intake(_Bell(self))
        self.context = Context(
            settings,
            self.catalogue,
            self.intake,
            self.bus,
            self.clock,
            self.artifacts,
            self.prepare,
            self.missing,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def prepare(self, spec: JobSpec, tenant: str) -> NewJob:
        """Check a submission against the catalogue. Raises `InvalidInput`."""
        task = self._task(spec.task)
        return prepare(
            spec,
            task,
            now=self.clock.now(),
            tenant=tenant,
            webhooks=self.catalogue.expects_webhooks(task.name),
            max_input=self.settings.max_input,
        )

    def prepare_adopted(self, spec: JobSpec, external_id: str, tenant: str) -> NewJob:
        """The same for a call made elsewhere."""
        task = self._task(spec.task)
        return prepare_adopted(
            spec,
            task,
            external_id,
            now=self.clock.now(),
            tenant=tenant,
            webhooks=self.catalogue.expects_webhooks(task.name),
        )

    def _task(self, name: str) -> Task[Any]:
        try:
            return self.catalogue.task(name)
        except NotFound as unknown:
            fault = {"loc": "task", "msg": unknown.message}
            raise InvalidInput(unknown.message, detail={"errors": [fault]}) from None

    async def start(self) -> None:
        """Lock, open, hear what the last process left behind, then begin."""
        self.lock.take()
        try:
            await self.database.open()
            await self.artifacts.start()
            self._tasks = [asyncio.create_task(self.writer.run(), name="agentflow-writer")]
            await self.worker.recover()
            await self.writer.recover()
        except BaseException:
            await self._end()
            raise
        self._tasks.append(asyncio.create_task(self.writer.owed.run(), name="agentflow-owed"))
        self.serving.start()
        self._announce()

    async def stop(self) -> None:
        await self.serving.stop(self.settings.grace)
        await self.intake.close()
        await self.writer.stop()
        await self._end()

    def missing(self) -> list[str]:
        """What keeps this process from being ready."""
        names = [t.get_name() for t in self._tasks if t.done()]
        return [f"{name} has stopped" for name in names] or ([] if self._tasks else ["not started"])

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        await self.worker.close()
        await self.database.close()
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
        handlers = self.tools.handlers
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
        self._sending: set[asyncio.Task[None]] = set()

    def room(self) -> bool:
        return self._runtime.broker.room() > len(self._sending)

    def new_job(self, new: NewJob) -> None:
        """Straight to the broker if its next ring is set for later, else the writer sends it."""
        job = new.job
        rung = job.check_at is not None and job.check_at > job.created_at
        if job.status is not Status.QUEUED or not rung:
            self._runtime.writer.ring()
            return
        input = orjson.loads(new.input)
        message = Message(job.id, job.attempt, job.current.token, job.task, input, job.deadline)
        sending = asyncio.ensure_future(self._runtime.broker.send(message))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    def inbox(self) -> None:
        self._runtime.writer.ring()
