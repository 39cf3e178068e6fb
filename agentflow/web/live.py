"""Server-sent events: listen first, read the history second, so that nothing falls between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent

from agentflow.core.job import FINAL
from agentflow.store import queries
from agentflow.web.context import Context

LOOK_EVERY = 5.0
"""Seconds after which the history is read although nobody rang."""


def stream(ctx: Context, tenant: str, job: str, after: int) -> EventSourceResponse:
    """Every entry with `seq` above `after`, now and as they come, until the job is final."""
    return EventSourceResponse(_entries(ctx, tenant, job, after), ping=15)


async def _entries(
    ctx: Context, tenant: str, job: str, after: int
) -> AsyncIterator[ServerSentEvent]:
    with ctx.bus.listen(job) as bell:
        while True:
            bell.clear()
            final = (await queries.get_job(tenant, job))["status"] in FINAL
            for entry in await queries.history(tenant, job, after):
                after = entry["seq"]
                data = orjson.dumps(entry).decode()
                yield ServerSentEvent(data=data, event=entry["event"], id=str(after))
            if final:
                return
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await bell.wait()
            except TimeoutError:
                continue
