"""The worker: claims attempts, makes their calls, and reports until the writer has confirmed.

It has no database and cannot submit. Every task is registered in Taskiq under its own name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from functools import cache
from typing import Any

import httpx
import structlog
from structlog.contextvars import bound_contextvars

from agentflow.artifacts import ArtifactStore, guarded_client
from agentflow.clock import Clock
from agentflow.plugins.catalogue import Catalogue
from agentflow.plugins.limiting import Limits
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.conversation import Denied, Granted, Message, WorkerSide
from agentflow.transport.live import Outlet
from agentflow.transport.permits import Ledger, LocalLedger
from agentflow.types import JobId
from agentflow.worker.attempt import Attempt
from agentflow.worker.files import Files
from agentflow.worker.line import Permit
from agentflow.worker.reports import Reports
from agentflow.worker.room import Room
from agentflow.worker.spool import Spool
from agentflow.worker.tools import Tools

log = structlog.get_logger(__name__)


class Worker:
    """`max_result` and `max_artifact` are in bytes; live text goes to `outlet`, if there is one."""

    def __init__(
        self,
        catalogue: Catalogue,
        writer: WorkerSide,
        store: ArtifactStore,
        spool: Spool,
        clock: Clock,
        *,
        id: str,
        max_result: int,
        max_artifact: int,
        allow_downloads: frozenset[str] = frozenset(),
        metrics: Metrics | None = None,
        outlet: Outlet | None = None,
        limits: Limits | None = None,
        ledger: Ledger | None = None,
        concurrency: int = 64,
    ) -> None:
        self.id, self.catalogue = id, catalogue
        self.metrics = metrics or Metrics(catalogue.tasks, catalogue.providers)
        self.limits = limits or Limits(catalogue)
        ledger = ledger or LocalLedger(lambda: clock.now().timestamp())
        self.room = Room(ledger, concurrency, self.metrics)
        self.reports = Reports(writer, spool, clock)
        downloads = guarded_client(allow_downloads)
        self.files = Files(store, downloads, max_result=max_result, max_artifact=max_artifact)
        http = httpx.AsyncClient(timeout=30.0, follow_redirects=False, verify=_known_authorities())
        self.tools = Tools(
            catalogue, writer, self.reports, self.files, self.room, http, self.metrics, outlet
        )
        self._stopping = asyncio.Event()
        self._asking: set[Attempt] = set()
        self.running: dict[tuple[JobId, int], Attempt] = {}
        self.collecting: set[tuple[JobId, int]] = set()
        self.fetching: dict[tuple[JobId, int], bool] = {}
        """What is being asked after, and whether somebody asked again meanwhile."""

    async def execute(self, message: Message, taken: Callable[[], None] = lambda: None) -> None:
        """One broker message: wait for a permit, claim, call, report. Never raises but for
        cancellation. `taken` is called once the message is ours to answer for; one that waits is
        not, and goes to another worker if this one stops."""
        about = {"job_id": message.job_id, "attempt": message.attempt, "task": message.task}
        demand = self.limits.for_call(message.task, message.input)
        with bound_contextvars(**about):
            async with self.room.place(message, demand) as permit:
                if permit is not None:
                    taken()
                    await self._execute(message, permit)

    async def _execute(self, message: Message, permit: Permit) -> None:
        attempt, grant = Attempt(self.tools, message, permit, self.id), None
        if attempt.needs_grant:
            grant = await self._granted(attempt)
            if grant is None:
                return
        self.running[attempt.key] = attempt
        try:
            await attempt.call(grant)
        finally:
            self.running.pop(attempt.key, None)

    async def _granted(self, attempt: Attempt) -> Granted | None:
        """None where no call is to be made."""
        if self._stopping.is_set():
            return None
        self._asking.add(attempt)
        answer = await attempt.ask()
        self._asking.remove(attempt)
        if isinstance(answer, Denied):
            log.debug("Claim denied", job_id=attempt.claim.job_id, reason=answer.reason)
            await attempt.decline(answer)
            return None
        if self._stopping.is_set():
            await attempt.hand_back()
            return None
        return answer

    def stop_attempt(self, job: JobId, attempt: int) -> None:
        """Cancel the attempt's call, unless a create is in flight: that must answer first."""
        running = self.running.get((job, attempt))
        if running is not None:
            running.stop()

    def held(self, task: str, seconds: float, place: str) -> None:
        """A function held the event loop for so long. Called in another thread."""
        self.metrics.loop_held[self.metrics.task(task),].inc()
        said = f"held the event loop for {seconds:.1f} s, at {place}; a plain def has a thread"
        self.catalogue.misconduct[task] = said
        log.error("A function held the event loop", task=task, seconds=round(seconds, 1), at=place)

    async def drain(self, grace: float) -> None:
        """Let running calls end for `grace` seconds; hand back what then still runs. A claim that
        is not answered by then is given up in the spool: it may have been granted all the same."""
        self._stopping.set()
        self.room.close()
        if calls := self._calls():
            await asyncio.wait(calls, timeout=grace)
        for (job, number), attempt in list(self.running.items()):
            attempt.abandon()
            log.warning("Call abandoned", job_id=job, attempt=number)
        if left := self._calls() | self.reports.on_their_way:
            await asyncio.wait(left, timeout=5.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                while self._asking or self.running:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.02)
        for attempt in self._asking:
            self.reports.spool.add(attempt.unused())

    def _calls(self) -> set[asyncio.Future[Any]]:
        return {attempt.work for attempt in self.running.values() if attempt.work is not None}

    async def close(self) -> None:
        await self.tools.http.aclose()
        await self.files.downloads.aclose()
        self.reports.spool.close()

    async def beat(self) -> None:
        """Tell the writer, again and again, that these attempts live."""
        while True:
            shortest = min((t.policy.lease for t in self.catalogue.tasks.values()), default=15.0)
            await asyncio.sleep(shortest / 3)
            alive = [*self.running, *self.collecting]
            if alive:
                self.tools.writer.beat(self.id, alive)


@cache  # reading the certificates takes longer than all else at start
def _known_authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context()
