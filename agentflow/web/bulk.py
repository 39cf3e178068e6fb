"""Cancel or retry every job that fits a filter. First as a rehearsal, unless told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from agentflow.core.submission import NewJob
from agentflow.errors import Conflict, InvalidInput, StoreUnavailable
from agentflow.store.bulk import cancelable, inputs, retry_key, retryable
from agentflow.store.inserts import InboxEntry
from agentflow.store.intake import Stored
from agentflow.store.queries import JobFilter
from agentflow.types import new_id
from agentflow.web import schemas
from agentflow.web.context import Context, body, context, invalid, tenant
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes
from agentflow.web.specs import again

bulk = Routes("jobs")

SLICE = 50
"""Jobs whose inputs are in memory at once."""

log = structlog.get_logger(__name__)


@bulk.add("POST", "/v1/jobs/cancel", body=schemas.BulkBody, answers={200: schemas.BulkAnswer})
async def cancel_jobs(request: Request) -> Response:
    """Ask for the end of all jobs of a filter

    Of open ones that are not being canceled yet, the oldest first. `done` wishes are stored and
    will be acted on.
    """
    ctx, who, said = context(request), tenant(request), await body(request, schemas.BulkBody)
    found = await cancelable(who, _wanted(said))
    if said.dry_run:
        return _answer(said, found, found)
    return _answer(said, found, await _cancel(ctx, who, found[: said.limit]))


@bulk.add(
    "POST", "/v1/jobs/retry", body=schemas.BulkBody, answers={200: schemas.BulkAnswer}, submits=True
)
async def retry_jobs(request: Request) -> Response:
    """Submit all jobs of a filter again, as new ones

    Of failed, canceled and expired ones, or of succeeded ones if the filter asks for them, the
    oldest first. A job is retried so once, however often this is sent; `done` are those that
    still fit their task, and `ids` names the old jobs.
    """
    ctx, who, said = context(request), tenant(request), await body(request, schemas.BulkBody)
    found = await retryable(who, _wanted(said))
    if said.dry_run:
        return _answer(said, found, found)
    return _answer(said, found, await _retry(ctx, who, found[: said.limit]))


def _wanted(said: schemas.BulkBody) -> JobFilter:
    wanted = said.filter.model_dump(exclude_none=True)
    if not wanted:
        raise invalid("filter", "at least one condition; not every job there is")
    return JobFilter(**wanted, limit=said.limit)


def _answer(said: schemas.BulkBody, found: Sequence[str], done: Sequence[str]) -> Response:
    return JsonResponse(
        {
            "matched": len(found),
            "done": 0 if said.dry_run else len(done),
            "ids": done[: said.limit],
            "dry_run": said.dry_run,
            "more": len(found) > said.limit,
        }
    )


async def _cancel(ctx: Context, who: str, ids: Sequence[str]) -> list[str]:
    """Store the wish for each; say of which it is stored."""
    entries = [
        InboxEntry(
            id=new_id("cmd"),
            kind="command",
            body=orjson.dumps({"command": "cancel", "job": id}),
            received_at=ctx.clock.now(),
            tenant=who,
            job_id=id,
        )
        for id in ids
    ]
    return _stored(ids, await ctx.intake.add_all(entries))


async def _retry(ctx: Context, who: str, ids: Sequence[str]) -> list[str]:
    done: list[str] = []
    for start in range(0, len(ids), SLICE):
        news = await _prepared(ctx, who, ids[start : start + SLICE])
        done += _stored(list(news), await ctx.intake.add_all(list(news.values())))
        await asyncio.sleep(0)
    return done


async def _prepared(ctx: Context, who: str, ids: Sequence[str]) -> dict[str, NewJob]:
    """The new jobs by the ids of the old ones, of those that are fit to be submitted still."""
    news: dict[str, NewJob] = {}
    for old in await inputs(who, ids):
        try:
            news[old["id"]] = ctx.prepare(again(old, retry_key(old["id"])), who)
        except InvalidInput as refused:
            log.warning("Not retried", job_id=old["id"], why=refused.message)
    return news


def _stored(ids: Sequence[str], ends: Sequence[Stored | BaseException]) -> list[str]:
    """The ids of what was stored. Raises `StoreUnavailable` if nothing could be."""
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, (Conflict, StoreUnavailable)):
            raise end
    if ends and all(isinstance(end, StoreUnavailable) for end in ends):
        raise StoreUnavailable
    return [id for id, end in zip(ids, ends, strict=True) if isinstance(end, Stored)]
