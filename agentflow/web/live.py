"""Waiting for a job: bounded, or as server-sent events.

Both listen first and read second, so that nothing falls between, and end when the client is gone
or the server is about to stop.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import orjson
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent

from agentflow.core.job import FINAL
from agentflow.errors import NotFound, StoreUnavailable
from agentflow.store import queries
from agentflow.types import JsonObject
from agentflow.web.context import Context

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


def stream(ctx: Context, tenant: str, job: str, after: int) -> EventSourceResponse:
    """Every entry with `seq` above `after`, now and as they come, until the job is final."""
    stopping = anyio.Event()
    return EventSourceResponse(
        _entries(ctx, tenant, job, after, stopping),
        ping=15,
        shutdown_event=stopping,
        shutdown_grace_period=4 * ASK_EVERY,
    )


async def _entries(
    ctx: Context, tenant: str, job: str, after: int, stopping: anyio.Event
) -> AsyncIterator[ServerSentEvent]:
    async def gone() -> bool:
        return stopping.is_set()

    with ctx.bus.listen(job) as bell:
        while True:
            bell.clear()
            try:
                final = (await queries.get_job(tenant, job))["status"] in FINAL
                found = await queries.history(tenant, job, after, PAGE)
            except (NotFound, StoreUnavailable) as error:
                log.warning("A live stream ended early", job_id=job, why=error.message)
                return  # the client comes back with Last-Event-ID and is told
            for entry in found:
                after = entry["seq"]
                data = orjson.dumps(entry).decode()
                yield ServerSentEvent(data=data, event=entry["event"], id=str(after))
            if len(found) == PAGE:
                continue
            if final or not await _rung(bell, LOOK_EVERY, gone):
                return


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
