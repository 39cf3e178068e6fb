"""The feed of everything: for those who keep tables of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio
import orjson
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentflow.errors import StoreUnavailable
from agentflow.store.feed import START, Position, Stretch, end, stretch
from agentflow.transport.bus import Bus
from agentflow.types import JobId
from agentflow.web import schemas
from agentflow.web.context import Context, context, identify, invalid, query, tenant
from agentflow.web.live import ASK_EVERY, LOOK_EVERY, PAGE
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes

feed = Routes("events")

log = structlog.get_logger(__name__)

SOON = 0.05
"""Seconds to the next look at entries that are held; each later pause is twice as long."""

NOW = "now"


@feed.add(
    "GET",
    "/v1/events",
    query=schemas.FeedQuery,
    answers={200: schemas.Feed},
    also="text/event-stream",
    headers={
        "Accept": "`text/event-stream` keeps the answer open and live.",
        "Last-Event-ID": "Where a live stream goes on.",
    },
)
async def everything(request: Request) -> Response:
    """Every entry of every job's history, each once, in one order

    Keep `next_cursor` and send it as `after`: nothing is ever inserted before it. It is given
    also where nothing is new. With `Accept: text/event-stream` live and without end; each event's
    id is the cursor after it.
    """
    ctx, who = context(request), tenant(request)
    wanted = query(request, schemas.FeedQuery)
    if "text/event-stream" in request.headers.get("accept", ""):
        said = request.headers.get("last-event-id")
        after = await _position(who, wanted.after if said is None else said, "Last-Event-ID")
        return _live(request, ctx, who, after)
    after = await _position(who, wanted.after, "after")
    found = Stretch([], False) if wanted.after == NOW else await stretch(who, after, wanted.limit)
    items = [entry for _, entry in found.entries]
    return JsonResponse({"items": items, "next_cursor": str(found.end(after))})


async def _position(who: str, cursor: str | None, loc: str) -> Position:
    """Where a cursor stands; without one, at the beginning. Raises `InvalidInput`."""
    if cursor == NOW:
        return await end(who)
    at = START if cursor is None else Position.read(cursor)
    if at is None:
        raise invalid(loc, "a cursor that the feed gave, or `now`")
    return at


def _live(request: Request, ctx: Context, who: str, after: Position) -> Response:
    stopping = anyio.Event()

    async def let_in() -> bool:
        """A stream without end outlives the key it was asked for with."""
        try:
            return (await identify(request, ctx)).tenant == who
        except HTTPException:
            return False

    return EventSourceResponse(
        _events(ctx.bus, who, after, stopping, let_in),
        ping=15,
        shutdown_event=stopping,
        shutdown_grace_period=4 * ASK_EVERY,
    )


async def _events(
    bus: Bus,
    who: str,
    after: Position,
    stopping: anyio.Event,
    let_in: Callable[[], Awaitable[bool]],
) -> AsyncIterator[ServerSentEvent]:
    """Listens first and reads second, so that nothing falls between."""
    yield ServerSentEvent(id=str(after))  # for who comes back before the first entry
    with _ringing(bus) as bell:
        pause = SOON
        while not stopping.is_set():
            bell.clear()
            try:
                if not await let_in():
                    return
                found = await stretch(who, after, PAGE)
            except StoreUnavailable:
                log.warning("The live feed ended early")
                return  # the client comes back with Last-Event-ID and is told
            for at, entry in found.entries:
                data = orjson.dumps(entry).decode()
                yield ServerSentEvent(data=data, event=entry["event"], id=str(at))
            after = found.end(after)
            if found.entries:
                pause = SOON
            if len(found.entries) == PAGE:
                continue
            if found.held:
                await _first(pause, stopping)
                pause = min(2 * pause, LOOK_EVERY)
            else:
                await _first(LOOK_EVERY, bell, stopping)


@contextmanager
def _ringing(bus: Bus) -> Iterator[asyncio.Event]:
    """A bell that rings when any job changes."""
    bell = asyncio.Event()

    def ring(_: Sequence[JobId]) -> None:
        bell.set()

    bus.watchers.append(ring)
    try:
        yield bell
    finally:
        bus.watchers.remove(ring)


async def _first(seconds: float, *events: asyncio.Event | anyio.Event) -> None:
    """Wait for one of them, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
