"""Waiting for a job: bounded, or as server-sent events.

Both listen first and read second, so that nothing falls between, and end when the client is gone
or the server is about to stop.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import ExitStack, aclosing
from dataclasses import dataclass

import anyio
import orjson
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent

from agentflow.core.job import FINAL
from agentflow.errors import NotFound, StoreUnavailable
from agentflow.store import queries
from agentflow.transport.bus import Bell
from agentflow.types import JobId, JsonObject
from agentflow.web.context import Context
from agentflow.web.deltas import Position

log = structlog.get_logger(__name__)

LOOK_EVERY = 5.0
"""Seconds after which the database is read although nobody rang."""

ASK_EVERY = 0.5
"""Seconds between two questions whether anybody still waits."""

PAGE = 1000

Gone = Callable[[], Awaitable[bool]]


async def wait_final(
    ctx: Context, who: str, id: str, seconds: float, gone: Gone | None = None
) -> JsonObject:
    """The job when it is final, or as it is after `seconds`, or when `gone` says that nobody
    waits any more. Raises `NotFound`."""
    until = time.monotonic() + seconds
    with ctx.bus.listen(id) as bell:
        while True:
            bell.clear()
            view = await queries.get_job(who, id)
            left = until - time.monotonic()
            if view["status"] in FINAL or left <= 0:
                return view
            if not await _rung(bell, min(left, LOOK_EVERY), gone):
                return view


def stream(
    ctx: Context, tenant: str, job: str, position: Position, *, deltas: bool
) -> EventSourceResponse:
    """Every entry behind the position, now and as they come, until the job is final; with `deltas`
    also the live text of the newest attempt."""
    stopping = anyio.Event()
    following = Following(ctx, tenant, JobId(job), position, deltas, stopping)
    return EventSourceResponse(
        following.events(),
        ping=15,
        shutdown_event=stopping,
        shutdown_grace_period=4 * ASK_EVERY,
    )


@dataclass(slots=True)
class Following:
    """One client of one job. It is served at its own pace: who is slow finds gaps in the live
    text, and holds nobody up."""

    ctx: Context
    tenant: str
    job: JobId
    position: Position
    deltas: bool
    stopping: anyio.Event

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        with ExitStack() as stack:
            bell = stack.enter_context(self.ctx.bus.listen(self.job))
            if self.deltas:
                stack.enter_context(self.ctx.live.follow(self.job, bell))
            try:
                async with aclosing(self._entries(bell)) as events:
                    async for event in events:
                        yield event
            except (NotFound, StoreUnavailable) as error:
                log.warning("A live stream ended early", job_id=self.job, why=error.message)
                return  # the client comes back with Last-Event-ID and is told

    async def _entries(self, bell: Bell) -> AsyncGenerator[ServerSentEvent, None]:
        """The history is read when it has changed and now and then, not for each piece of text."""
        again = 0.0
        while True:
            bell.clear()
            if bell.changed or time.monotonic() >= again:
                bell.changed, again = False, time.monotonic() + LOOK_EVERY
                final = (await queries.get_job(self.tenant, self.job))["status"] in FINAL
                found = await queries.history(self.tenant, self.job, self.position.seq, PAGE)
                async for event in self._told(found):
                    yield event
                bell.changed = bell.changed or len(found) == PAGE
                if final and len(found) < PAGE:
                    return
            for event in self._news():
                yield event
            if bell.changed:
                continue
            if not await _rung(bell, again - time.monotonic(), self._gone):
                return

    async def _told(self, found: Sequence[JsonObject]) -> AsyncIterator[ServerSentEvent]:
        """Before the end of the job, all its text."""
        for entry in found:
            if self.deltas and entry["status"] in FINAL and entry["disposition"] == "applied":
                await self.ctx.live.catch_up(self.job)
                for event in self._news():
                    yield event
                for event in self.position.unsure(self.ctx.live.window.get(self.job)):
                    yield event
            self.position.seq = entry["seq"]
            data, id = orjson.dumps(entry).decode(), str(entry["seq"])
            yield ServerSentEvent(data=data, event=entry["event"], id=id)
            if self.position.attempt:  # says no more than where to go on
                yield ServerSentEvent(id=self.position.id)

    def _news(self) -> Iterator[ServerSentEvent]:
        if self.deltas:
            yield from self.position.news(self.ctx.live.window.get(self.job))

    async def _gone(self) -> bool:
        return self.stopping.is_set()


async def _rung(bell: asyncio.Event, seconds: float, gone: Gone | None) -> bool:
    """Wait for the bell, at most so long; False if nobody waits any more."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left if gone is None else min(left, ASK_EVERY)):
                await bell.wait()
                return True
        except TimeoutError:
            if gone is not None and await gone():
                return False
    return True


def server_stops() -> bool:
    """Whether the uvicorn that serves us was told to stop: it waits for every open request.

    It tells its applications only afterwards, so it is asked by its signal handler, which is where
    sse-starlette finds it too.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
