"""What a worker tells the writer: outcomes, until they are confirmed, and progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeAlias

import structlog

from agentflow.clock import Clock
from agentflow.core.events import Envelope, Event, Progressed, Source
from agentflow.transport.conversation import WorkerSide
from agentflow.types import JobId, new_id
from agentflow.worker.spool import Spool

log = structlog.get_logger(__name__)

MOST_UNHEARD = 1000
"""Reports of progress on their way; more are not made."""

PROGRESS_EVERY = 0.5
"""Seconds between two reports of progress of one attempt."""

OnProgress: TypeAlias = Callable[[float | None, str | None], None]
"""Takes how far it is, in 0..1, and what to show."""


class Reports:
    def __init__(self, writer: WorkerSide, spool: Spool, clock: Clock) -> None:
        self._writer, self.clock = writer, clock
        self.spool = spool
        self.on_their_way: set[asyncio.Task[None]] = set()
        """Those whose loss would matter little."""

    async def recover(self) -> None:
        """Say again what an earlier process did not get confirmed."""
        for envelope in self.spool.recover():
            await self._writer.report(envelope)
            self.spool.confirmed(envelope)

    async def send(self, envelope: Envelope) -> None:
        """Keep it in the spool until the writer has committed it."""
        try:
            self.spool.add(envelope)
        except OSError as error:  # the disk is full: the writer hears it all the same
            log.error("The spool cannot be written", error=str(error)[:200])
        await self._writer.report(envelope)
        self.spool.confirmed(envelope)

    def envelope(
        self, job: JobId, id: str, event: Event, source: Source = Source.WORKER
    ) -> Envelope:
        return Envelope(id, source, self.clock.now(), job, event)

    def progress(self, job: JobId, attempt: int) -> OnProgress:
        """What tells how far this attempt is, now and then; the end always."""
        last = 0.0

        def progress(fraction: float | None, text: str | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < PROGRESS_EVERY and fraction != 1.0:
                return
            last = now
            event = Progressed(fraction=fraction, message=text, attempt=attempt)
            self._mention(self.envelope(job, new_id(f"progress:{attempt}"), event))

        return progress

    def _mention(self, envelope: Envelope) -> None:
        """Report something whose loss would matter little."""
        if len(self.on_their_way) >= MOST_UNHEARD:  # nobody listens: news will be said later
            return
        report = asyncio.ensure_future(self._writer.report(envelope))
        self.on_their_way.add(report)
        report.add_done_callback(self.on_their_way.discard)
