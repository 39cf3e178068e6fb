"""Everything else: deliveries, handlers, files, the catalogue, health."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from agentflow.core.providers import Task
from agentflow.core.results import artifact_place
from agentflow.errors import Conflict, NotFound
from agentflow.plugins.catalogue import Catalogue, Ready
from agentflow.store import queries
from agentflow.store.artifacts import stored_artifact
from agentflow.store.rows import dumps
from agentflow.web import schemas
from agentflow.web.context import context, query, tenant
from agentflow.web.jobs import command
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes

inbox = Routes("deliveries")
files = Routes("artifacts")
catalogue = Routes("catalogue")
health = Routes("health")

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@inbox.add(
    "GET",
    "/v1/deliveries",
    query=schemas.DeliveriesQuery,
    answers={200: schemas.Page[schemas.Delivery], 422: None},
)
async def deliveries(request: Request) -> Response:
    """List the webhooks received, newest first"""
    wanted = query(request, schemas.DeliveriesQuery)
    found, cursor = await queries.deliveries(tenant(request), **wanted.model_dump())
    return JsonResponse({"items": found, "next_cursor": cursor})


@inbox.add("GET", "/v1/deliveries/{id}", answers={200: schemas.DeliveryWhole, 404: None})
async def delivery(request: Request) -> Response:
    """Show a delivery with its body"""
    return JsonResponse(await queries.get_delivery(tenant(request), request.path_params["id"]))


@inbox.add(
    "POST", "/v1/deliveries/{id}/replay", answers={202: schemas.Commanded, 404: None, 409: None}
)
async def replay(request: Request) -> Response:
    """Read a stored delivery again with today's code

    Only the signature's time check is skipped: it was verified when it came in.
    """
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    found = await queries.get_delivery(who, id)
    if found["kind"] != "webhook":
        raise Conflict(f"{id} is no webhook: there is nothing to read again")
    stored, status = await command(ctx, who, {"command": "replay", "delivery": id})
    return JsonResponse({"id": stored, "status": status}, 202)


@inbox.add(
    "GET",
    "/v1/handler-runs",
    query=schemas.RunsQuery,
    answers={200: schemas.Page[schemas.HandlerRun], 422: None},
)
async def handler_runs(request: Request) -> Response:
    """List runs of the application's handlers that are owed or set aside"""
    wanted = query(request, schemas.RunsQuery)
    found, cursor = await queries.handler_runs(tenant(request), **wanted.model_dump())
    return JsonResponse({"items": found, "next_cursor": cursor})


@inbox.add("POST", "/v1/handler-runs/{id}/retry", answers={202: schemas.Commanded, 404: None})
async def retry_handler(request: Request) -> Response:
    """Run a handler again that was set aside"""
    ctx, who, id = context(request), tenant(request), request.path_params["id"]
    known, _ = await queries.handler_runs(who, status=None, cursor=f"{id}~", limit=1)
    if not known or known[0]["id"] != id:
        raise NotFound(f"There is no run {id}")
    stored, status = await command(ctx, who, {"command": "retry_handler", "run": id})
    return JsonResponse({"id": stored, "status": status}, 202)


@files.add(
    "GET",
    "/v1/artifacts/{id}",
    answers={200: None, 206: None, 404: None, 416: None},
    headers={"Range": "One range of bytes (RFC 9110, 14.2)."},
    media="application/octet-stream",
)
async def artifact(request: Request) -> Response:
    """Download a file in custody"""
    ctx, id = context(request), request.path_params["id"]
    if artifact_place(id) is None:
        raise NotFound(f"There is no file {id}")
    found = await stored_artifact(tenant(request), id)
    size: int = found["size"]
    start, end = _range(request.headers.get("range"), size)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        "Content-Disposition": f'attachment; filename="{_safe(found["name"] or id)}"',
        "ETag": f'"{found["sha256"]}"',
        "X-Content-Type-Options": "nosniff",
    }
    whole = (start, end) == (0, size)
    if not whole:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    chunks: AsyncIterator[bytes] = await ctx.artifacts.open(found["key"], start, end)
    media = found["media_type"] or "application/octet-stream"
    return StreamingResponse(chunks, 200 if whole else 206, headers, media_type=media)


def _range(header: str | None, size: int) -> tuple[int, int]:
    """The asked bytes, end exclusive; what is not understood is the whole. Raises 416."""
    asked = _RANGE.fullmatch(header.strip()) if header else None
    if asked is None or asked.group(1) == asked.group(2) == "":
        return 0, size
    first, last = asked.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= end:
        raise HTTPException(416, "No such bytes", {"Content-Range": f"bytes */{size}"})
    return start, end


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:]


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
    ctx = context(request)
    missing = ctx.missing()
    oldest: float | None = None
    try:
        await queries.ping()
        oldest = await queries.oldest_due(ctx.clock.now())
    except Exception as error:  # whatever the database raises, it is not there
        missing = [*missing, f"database: {type(error).__name__}"]
    said = {
        "status": "unavailable" if missing else "ok",
        "missing": missing,
        "oldest_due_seconds": oldest,
        "plugin_problems": ctx.catalogue.problems,
    }
    return JsonResponse(said, 503 if missing else 200)
