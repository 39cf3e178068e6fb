"""Jobs: submit, look, wait, cancel, retry, history."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from agentflow.core.job import FINAL
from agentflow.core.submission import JobSpec
from agentflow.errors import Conflict, InvalidInput
from agentflow.store import queries
from agentflow.store.inserts import InboxEntry
from agentflow.store.rows import loads
from agentflow.types import JsonObject, new_id
from agentflow.web import schemas
from agentflow.web.context import Context, body, context, query, tenant
from agentflow.web.live import stream
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes

jobs = Routes("jobs")

_PREFER_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*(\d{1,6})")


@jobs.add(
    "POST",
    "/v1/jobs",
    body=schemas.NewJobBody,
    answers={201: schemas.Job, 200: schemas.Job, 409: None, 422: None},
    headers={"Idempotency-Key": "The same key and body give the same job."},
)
async def submit(request: Request) -> Response:
    """Submit a job

    201 for a new job; 200 for one that was there under this idempotency key.
    """
    ctx = context(request)
    said = await body(request, schemas.NewJobBody)
    spec = JobSpec(
        said.task,
        said.input,
        entity=said.entity,
        priority=said.priority,
        delay=said.delay,
        run_at=said.run_at,
        deadline=said.deadline,
        max_attempts=said.max_attempts,
        tags=said.tags,
        metadata=said.metadata,
        idempotency_key=request.headers.get("idempotency-key"),
    )
    return await _store(request, ctx, spec)


async def _store(request: Request, ctx: Context, spec: JobSpec) -> Response:
    stored = await ctx.intake.add_job(ctx.prepare(spec, tenant(request)))
    view = with_urls(request, await queries.get_job(tenant(request), stored.id))
    headers = {"Location": view["urls"]["self"]}
    return JsonResponse(view, 201 if stored.new else 200, headers)


@jobs.add(
    "GET", "/v1/jobs", query=schemas.JobsQuery, answers={200: schemas.Page[schemas.Job], 422: None}
)
async def index(request: Request) -> Response:
    """List jobs, newest first"""
    wanted = query(request, schemas.JobsQuery)
    found, cursor = await queries.list_jobs(
        tenant(request), queries.JobFilter(**wanted.model_dump())
    )
    return JsonResponse({"items": [with_urls(request, j) for j in found], "next_cursor": cursor})


@jobs.add(
    "GET",
    "/v1/jobs/{id}",
    query=schemas.JobQuery,
    answers={200: schemas.Job, 404: None, 422: None},
    headers={"Prefer": "`wait=N` is the same as `?wait=N` (RFC 7240)."},
)
async def show(request: Request) -> Response:
    """Show a job, or wait for its end

    With `wait`, answers as soon as the job is final, and with the job as it is when time is up.
    """
    ctx = context(request)
    wait = query(request, schemas.JobQuery).wait
    preferred = _PREFER_WAIT.search(request.headers.get("prefer", ""))
    headers = {}
    if wait is None and preferred:
        wait = float(preferred[1])
        headers["Preference-Applied"] = f"wait={preferred[1]}"
    seconds = min(wait or 0.0, ctx.settings.max_wait)
    view = await wait_final(ctx, tenant(request), request.path_params["id"], seconds)
    return JsonResponse(with_urls(request, view), headers=headers)


async def wait_final(ctx: Context, who: str, id: str, seconds: float) -> JsonObject:
    """The job when it is final, or as it is after `seconds`. Raises `NotFound`."""
    until = time.monotonic() + seconds
    with ctx.bus.listen(id) as bell:
        while True:
            bell.clear()
            view = await queries.get_job(who, id)
            left = until - time.monotonic()
            if view["status"] in FINAL or left <= 0:
                return view
            try:
                async with asyncio.timeout(min(left, 5.0)):
                    await bell.wait()
            except TimeoutError:
                continue


@jobs.add("POST", "/v1/jobs/{id}/cancel", answers={202: schemas.Job, 200: schemas.Job, 404: None})
async def cancel(request: Request) -> Response:
    """Ask for the end of a job

    202: the wish is stored and will be acted on. 200: the job was final already.
    """
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    view = await queries.get_job(who, id)
    if view["status"] in FINAL:
        return JsonResponse(with_urls(request, view))
    await command(ctx, who, {"command": "cancel", "job": id}, job_id=id)
    return JsonResponse(with_urls(request, await queries.get_job(who, id)), 202)


@jobs.add(
    "POST", "/v1/jobs/{id}/retry", answers={201: schemas.Job, 404: None, 409: None, 422: None}
)
async def retry(request: Request) -> Response:
    """Submit a final job again, as a new one

    The new job has `retry_of`; the old one stays as it is.
    """
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    old = await queries.get_input(who, id)
    if old["status"] not in FINAL:
        raise Conflict(f"{id} is {old['status']}: only a final job can be retried.")
    spec = JobSpec(
        old["task"],
        loads(old["input"]),
        entity=old["entity"],
        priority=old["priority"],
        tags=loads(old["tags"]),
        metadata=loads(old["metadata"]),
        max_attempts=old["max_attempts"],
        retry_of=id,
    )
    return await _store(request, ctx, spec)


@jobs.add(
    "GET",
    "/v1/jobs/{id}/events",
    query=schemas.EntriesQuery,
    answers={200: schemas.Page[schemas.Entry], 404: None, 422: None},
    headers={
        "Accept": "`text/event-stream` keeps the answer open and live.",
        "Last-Event-ID": "Where a live stream goes on.",
    },
)
async def entries(request: Request) -> Response:
    """The job's history; live with `Accept: text/event-stream`

    Each live event's id is the entry's `seq`; the stream ends after the entry that made the job
    final.
    """
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    wanted = query(request, schemas.EntriesQuery)
    await queries.get_job(who, id)
    if "text/event-stream" in request.headers.get("accept", ""):
        after = _last_event_id(request, wanted.after)
        return stream(ctx, who, id, after)
    found = await queries.history(who, id, wanted.after, wanted.limit)
    cursor = str(found[-1]["seq"]) if len(found) == wanted.limit else None
    return JsonResponse({"items": found, "next_cursor": cursor})


def _last_event_id(request: Request, default: int) -> int:
    said = request.headers.get("last-event-id")
    if said is None:
        return default
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise InvalidInput("Last-Event-ID: the `seq` of an entry")
    return int(said)


async def command(ctx: Context, who: str, said: JsonObject, job_id: str | None = None) -> Any:
    """Store a command, and give the writer a moment to apply it. Returns its inbox status."""
    entry = InboxEntry(
        id=new_id("cmd"),
        kind="command",
        body=orjson.dumps(said),
        received_at=ctx.clock.now(),
        tenant=who,
        job_id=job_id,
    )
    await ctx.intake.add_inbox(entry)
    for pause in (0.005, 0.02, 0.05, 0.1, 0.2, 0.4):
        status = await queries.inbox_status(entry.id)
        if status != "received":
            break
        await asyncio.sleep(pause)
    return entry.id, status


def with_urls(request: Request, view: JsonObject) -> JsonObject:
    """The job with the places to go from here, and its stored files with theirs."""
    root = request.scope.get("root_path", "").rstrip("/")
    base = f"{root}/v1/jobs/{view['id']}"
    for artifact in (view["result"] or {}).get("artifacts", []):
        if artifact["status"] == "stored":
            artifact["url"] = f"{root}/v1/artifacts/{artifact['id']}"
    urls = {"self": base, "events": f"{base}/events"}
    if view["status"] not in FINAL:
        urls["cancel"] = f"{base}/cancel"
    else:
        urls["retry"] = f"{base}/retry"
    return {**view, "urls": urls}
