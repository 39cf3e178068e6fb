"""Everything else: deliveries, handlers, files, the catalogue, health."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from agentflow.core.providers import Task
from agentflow.errors import Conflict, NotFound
from agentflow.plugins.catalogue import Catalogue, Ready
from agentflow.store import queries
from agentflow.store.artifacts import stored_artifact
from agentflow.store.rows import dumps
from agentflow.web import schemas
from agentflow.web.context import Context, confides, context, principal, query, tenant
from agentflow.web.jobs import command
from agentflow.web.metrics import gauges
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes

inbox = Routes("deliveries")
files = Routes("artifacts")
catalogue = Routes("catalogue")
health = Routes("health")

log = structlog.get_logger(__name__)

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@inbox.add(
    "GET",
    "/v1/deliveries",
    query=schemas.DeliveriesQuery,
    answers={200: schemas.Page[schemas.Delivery]},
)
async def deliveries(request: Request) -> Response:
    """List the webhooks received, newest first"""
    wanted = query(request, schemas.DeliveriesQuery)
    who = principal(request)
    found, cursor = await queries.deliveries(who.tenant, strays=who.operator, **wanted.model_dump())
    return JsonResponse({"items": found, "next_cursor": cursor})


@inbox.add("GET", "/v1/deliveries/{id}", answers={200: schemas.DeliveryWhole})
async def delivery(request: Request) -> Response:
    """Show a delivery with its body"""
    who, id = principal(request), request.path_params["id"]
    return JsonResponse(await queries.get_delivery(who.tenant, id, strays=who.operator))


@inbox.add("POST", "/v1/deliveries/{id}/replay", answers={202: schemas.Commanded, 409: None})
async def replay(request: Request) -> Response:
    """Read a stored delivery again with today's code

    Only the signature's time check is skipped: it was verified when it came in.
    """
    ctx, who, id = context(request), principal(request), request.path_params["id"]
    found = await queries.get_delivery(who.tenant, id, strays=who.operator)
    if found["kind"] != "webhook":
        raise Conflict(f"{id} is no webhook: there is nothing to read again")
    stored, status = await command(ctx, who.tenant, {"command": "replay", "delivery": id})
    return JsonResponse({"id": stored, "status": status}, 202)


@inbox.add(
    "GET",
    "/v1/handler-runs",
    query=schemas.RunsQuery,
    answers={200: schemas.Page[schemas.HandlerRun]},
)
async def handler_runs(request: Request) -> Response:
    """List runs of the application's handlers that are owed or set aside"""
    wanted = query(request, schemas.RunsQuery)
    found, cursor = await queries.handler_runs(tenant(request), **wanted.model_dump())
    return JsonResponse({"items": found, "next_cursor": cursor})


@inbox.add("POST", "/v1/handler-runs/{id}/retry", answers={202: schemas.Commanded, 409: None})
async def retry_handler(request: Request) -> Response:
    """Run a handler again that was set aside"""
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    status = (await queries.get_handler_run(who, id))["status"]
    if status != "parked":
        raise Conflict(f"{id} is {status}: only a run that was set aside can be retried.")
    stored, status = await command(ctx, who, {"command": "retry_handler", "run": id})
    return JsonResponse({"id": stored, "status": status}, 202)


@files.add(
    "GET",
    "/v1/artifacts/{id}",
    answers={200: None, 206: None, 304: None, 416: None},
    also="*/*",
    headers={
        "Range": "One range of bytes (RFC 9110, 14.2).",
        "If-Range": "The ETag for which the range holds.",
        "If-None-Match": "ETags that need not be sent again.",
    },
)
async def artifact(request: Request) -> Response:
    """Download a file in custody"""
    ctx, id = context(request), request.path_params["id"]
    found = await stored_artifact(tenant(request), id)
    size, etag = found["size"], f'"{found["sha256"]}"'
    if etag in _etags(request.headers.getlist("if-none-match")):
        return Response(status_code=304, headers={"ETag": etag})
    asked = request.headers.get("range")
    if request.headers.get("if-range", etag) != etag:
        asked = None
    part = _range(asked, size)
    start, end = part or (0, size)
    try:
        chunks: AsyncIterator[bytes] = await ctx.artifacts.open(found["key"], start, end)
    except NotFound:
        log.error("A file in custody is gone from the store", artifact=id)
        raise NotFound(f"The file {id} is gone from the store") from None
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        "Content-Type": found["media_type"] or "application/octet-stream",
        "Content-Disposition": f'attachment; filename="{_safe(found["name"] or "") or id}"',
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(chunks, 200 if part is None else 206, headers)


def _etags(headers: Sequence[str]) -> set[str]:
    """What If-None-Match names; a weak tag of the same bytes is as good (RFC 9110, 13.1.2)."""
    return {tag.strip().removeprefix("W/") for tag in ",".join(headers).split(",")}


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """The asked bytes, end exclusive; None, the whole, for what is not understood. Raises 416."""
    asked = _RANGE.fullmatch(header.strip()) if header else None
    if asked is None or asked.group(1) == asked.group(2) == "":
        return None
    first, last = asked.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= end:
        raise HTTPException(416, "No such bytes", {"Content-Range": f"bytes */{size}"})
    return start, end


def _safe(name: str) -> str:
    """The name in the letters that every header and every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-100:].lstrip("._-")


@catalogue.add("GET", "/v1/tasks", answers={200: schemas.Page[schemas.TaskInfo]})
async def tasks(request: Request) -> Response:
    """List the tasks with the JSON Schemas of their inputs"""
    known = context(request).catalogue
    found = [task_view(known, task) for _, task in sorted(known.tasks.items())]
    return JsonResponse({"items": found, "next_cursor": None})


@catalogue.add("GET", "/v1/providers", answers={200: schemas.Page[schemas.ProviderInfo]})
async def providers(request: Request) -> Response:
    """List the providers and how their webhooks come"""
    known = context(request).catalogue
    found = [provider_view(known, ready) for _, ready in sorted(known.providers.items())]
    return JsonResponse({"items": found, "next_cursor": None})


def task_view(known: Catalogue, task: Task[Any]) -> dict[str, Any]:
    abilities = task.abilities(webhooks=known.expects_webhooks(task.name))
    return {
        "name": task.name,
        "provider": task.name.split(".", 1)[0],
        "description": task.description,
        "kind": task.kind,
        "input_schema": task.schema,
        "policy": orjson.loads(dumps(task.policy)),
        "abilities": dataclasses.asdict(abilities),
    }


def provider_view(known: Catalogue, ready: Ready) -> dict[str, Any]:
    provider = ready.provider
    takes = ready.verifier is not None and known.public_url is not None
    tail = "/{token}" if provider.webhooks == "per_request" else ""
    return {
        "name": provider.name,
        "description": provider.description,
        "webhooks": provider.webhooks,
        "webhooks_ready": takes,
        "webhook_problem": ready.webhook_problem,
        "webhook_url": f"{known.public_url}/webhooks/{provider.name}{tail}" if takes else None,
        "tasks": sorted(provider.tasks),
    }


@health.add("GET", "/healthz", answers={200: schemas.Health})
async def healthz(request: Request) -> Response:
    """The process is alive"""
    del request
    return JsonResponse({"status": "ok"})


@health.add("GET", "/readyz", answers={200: schemas.Health, 503: schemas.Health})
async def readyz(request: Request) -> Response:
    """The process can do its work; says what is missing and how late the oldest due work is"""
    ctx: Context | None = request.app.state.agentflow
    if ctx is None:
        return JsonResponse(_health(["not started"], None, {}), 503)
    missing = ctx.missing()
    oldest: float | None = None
    if ctx.settings.mode != "worker":  # which has no database
        try:
            oldest = await queries.oldest_due(ctx.clock.now())
        except Exception as error:  # whatever the database raises, it is not there
            missing = [*missing, *await _trouble(request, error)]
    status = 503 if missing else 200
    if await confides(request, ctx):
        known = ctx.catalogue
        said = _health(missing, oldest, known.problems | known.misconduct)
    else:
        said = _health([], None, {}) | {"status": "unavailable" if missing else "ok"}
    return JsonResponse(said, status, {"Cache-Control": "no-store"})


async def _trouble(request: Request, error: Exception) -> list[str]:
    """What the database lacks: an answer, or a migration."""
    measured = gauges(request)
    found = await measured.trouble() if measured else []
    return found or [f"the database cannot be reached ({type(error).__name__})"]


def _health(missing: list[str], oldest: float | None, problems: dict[str, str]) -> dict[str, Any]:
    return {
        "status": "unavailable" if missing else "ok",
        "missing": missing,
        "oldest_due_seconds": oldest,
        "plugin_problems": problems,
    }
