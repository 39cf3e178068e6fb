"""Jobs: submit, look, wait, cancel, retry, history."""

from __future__ import annotations

import asyncio
import re

import orjson
from starlette.requests import Request
from starlette.responses import Response

from agentflow.core.job import FINAL
from agentflow.core.submission import JobSpec, request_hash
from agentflow.errors import Conflict, InvalidInput
from agentflow.store import queries
from agentflow.store.inserts import InboxEntry
from agentflow.store.intake import Stored
from agentflow.types import JsonObject, new_id
from agentflow.web import schemas
from agentflow.web.context import Context, body, context, invalid, query, tenant
from agentflow.web.deltas import Delta, Gap, Position
from agentflow.web.live import server_stops, stream, wait_final
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes
from agentflow.web.specs import again, new_spec

jobs = Routes("jobs")

_PREFER_WAIT = re.compile(r'wait\s*=\s*("?)(\d{1,9})\1\s*(;.*)?', re.I)

_ONCE = {"Idempotency-Key": "The same key and the same request give the same job."}


@jobs.add(
    "POST",
    "/v1/jobs",
    body=schemas.NewJobBody,
    answers={201: schemas.Job, 200: schemas.Job, 409: None},
    headers=_ONCE,
)
async def submit(request: Request) -> Response:
    """Submit a job

    201 for a new job; 200 for one that was there under this idempotency key.
    """
    ctx = context(request)
    said = await body(request, schemas.NewJobBody)
    spec = new_spec(said, _idempotency_key(request))
    return await _store(request, ctx, spec)


def _idempotency_key(request: Request) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if len(given) > 1:
        raise invalid("idempotency_key", "one header at most")
    return given[0] if given else None


async def _store(request: Request, ctx: Context, spec: JobSpec) -> Response:
    who = tenant(request)
    try:
        stored = await ctx.intake.add_job(ctx.prepare(spec, who))
    except InvalidInput:
        known = await _known(spec, who)
        if known is None:
            raise
        stored = known
    view = with_urls(request, await queries.get_job(who, stored.id))
    headers = {"Location": view["urls"]["self"]}
    return JsonResponse(view, 201 if stored.new else 200, headers)


async def _known(spec: JobSpec, who: str) -> Stored | None:
    """The job of this very request: what was good once (a deadline, say) is not refused later."""
    if spec.idempotency_key is None:
        return None
    try:
        asked = request_hash(spec)
    except TypeError:  # no JSON, so never stored
        return None
    known = await queries.job_of_request(who, spec.idempotency_key, asked)
    return None if known is None else Stored(known, False)


@jobs.add("GET", "/v1/jobs", query=schemas.JobsQuery, answers={200: schemas.Page[schemas.Job]})
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
    answers={200: schemas.Job},
    headers={"Prefer": "`wait=N` is the same as `?wait=N` (RFC 7240)."},
)
async def show(request: Request) -> Response:
    """Show a job, or wait for its end

    With `wait`, answers as soon as the job is final, and with the job as it is when time is up.
    """
    ctx = context(request)
    wait = query(request, schemas.JobQuery).wait
    preferred = _preferred_wait(request) if wait is None else None
    seconds = min(wait or preferred or 0.0, ctx.settings.max_wait)
    headers = {} if preferred is None else {"Preference-Applied": f"wait={seconds:g}"}

    async def gone() -> bool:
        return server_stops() or await request.is_disconnected()

    view = await wait_final(ctx, tenant(request), request.path_params["id"], seconds, gone)
    return JsonResponse(with_urls(request, view), headers=headers)


def _preferred_wait(request: Request) -> int | None:
    """Seconds from `Prefer` (RFC 7240): the first `wait` counts, the unintelligible is ignored."""
    for said in ",".join(request.headers.getlist("prefer")).split(","):
        wait = _PREFER_WAIT.fullmatch(said.strip())
        if wait:
            return int(wait[2])
    return None


@jobs.add("POST", "/v1/jobs/{id}/cancel", answers={202: schemas.Job, 200: schemas.Job})
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
    "POST",
    "/v1/jobs/{id}/retry",
    answers={201: schemas.Job, 200: schemas.Job, 409: None, 422: None},
    headers=_ONCE,
)
async def retry(request: Request) -> Response:
    """Submit a final job again, as a new one

    The new job has `retry_of`; the old one stays as it is.
    """
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    old = await queries.get_input(who, id)
    if old["status"] not in FINAL:
        raise Conflict(f"{id} is {old['status']}: only a final job can be retried.")
    spec = again(old, _idempotency_key(request))
    return await _store(request, ctx, spec)


@jobs.add(
    "GET",
    "/v1/jobs/{id}/events",
    query=schemas.EntriesQuery,
    answers={200: schemas.Page[schemas.Entry], 204: None},
    also="text/event-stream",
    events={"delta": Delta, "gap": Gap, "*": schemas.Entry},
    headers={
        "Accept": "`text/event-stream` keeps the answer open and live.",
        "Last-Event-ID": "Where a live stream goes on.",
    },
)
async def entries(request: Request) -> Response:
    """The job's history; live with `Accept: text/event-stream`

    Each live event's id is the entry's `seq`; the stream ends after the entry that made the job
    final. 204 tells a stream that was resumed after that entry to stay away. What a running call
    says comes live between the entries, as events named `delta`, unless `deltas` is false: it is
    stored nowhere. Those of a higher attempt replace those before. `gap` says that text is missing
    at an offset, and how many characters, or null if nobody knows. All lengths are in characters.
    Their ids, `SEQ:ATTEMPT.TEXT.LOGS`, take a stream up where it was.
    """
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    wanted = query(request, schemas.EntriesQuery)
    job = await queries.get_job(who, id)
    if "text/event-stream" in request.headers.get("accept", ""):
        position = _last_event_id(request) or Position(wanted.after)
        resumed = position.seq >= 0 and job["status"] in FINAL
        if resumed and not await queries.history(who, id, position.seq, 1):
            return Response(status_code=204)
        return stream(ctx, who, id, position, deltas=wanted.deltas)
    found = await queries.history(who, id, wanted.after, wanted.limit + 1)
    items = found[: wanted.limit]
    cursor = str(items[-1]["seq"]) if len(found) > len(items) else None
    return JsonResponse({"items": items, "next_cursor": cursor})


def _last_event_id(request: Request) -> Position | None:
    said = request.headers.get("last-event-id")
    try:
        return None if said is None else Position.read(said)
    except ValueError as error:
        raise invalid("Last-Event-ID", str(error)) from None


async def command(
    ctx: Context, who: str, said: JsonObject, job_id: str | None = None
) -> tuple[str, str]:
    """Store a command, and give the writer a moment to apply it. Returns its id and status."""
    entry = InboxEntry(
        id=new_id("cmd"),
        kind="command",
        body=orjson.dumps(said),
        received_at=ctx.clock.now(),
        tenant=who,
        job_id=job_id,
    )
    await ctx.intake.add_inbox(entry)
    status = "received"
    for pause in (0.005, 0.02, 0.05, 0.1, 0.2, 0.4):
        await asyncio.sleep(pause)
        status = await queries.inbox_status(entry.id)
        if status != "received":
            break
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
