"""Pauses: stop starting jobs of a task or a provider, for everybody, until it is resumed."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from agentflow.errors import NotFound
from agentflow.store.pauses import list_pauses
from agentflow.types import JsonObject
from agentflow.web import schemas
from agentflow.web.context import body, context, invalid, tenant
from agentflow.web.jobs import command
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes

pauses = Routes("pauses")


@pauses.add("GET", "/v1/pauses", answers={200: schemas.Page[schemas.Pause]}, scope="admin")
async def paused(request: Request) -> Response:
    """List what is paused"""
    del request
    return JsonResponse({"items": await list_pauses(), "next_cursor": None})


@pauses.add(
    "POST", "/v1/pauses", body=schemas.PauseBody, answers={202: schemas.Commanded}, scope="admin"
)
async def pause(request: Request) -> Response:
    """Pause a task, or all tasks of a provider

    Its queued jobs wait; what has begun goes on to its end. Paused again, it takes the new note.
    """
    ctx, said = context(request), await body(request, schemas.PauseBody)
    if said.target not in ctx.catalogue.tasks and said.target not in ctx.catalogue.providers:
        raise invalid("target", f"There is no task or provider {said.target!r}")
    return await _commanded(request, {"command": "pause", "target": said.target, "note": said.note})


@pauses.add("DELETE", "/v1/pauses/{target}", answers={202: schemas.Commanded}, scope="admin")
async def resume(request: Request) -> Response:
    """Resume what is paused"""
    target = request.path_params["target"]
    if not any(pause["target"] == target for pause in await list_pauses()):
        raise NotFound(f"{target} is not paused")
    return await _commanded(request, {"command": "resume", "target": target})


async def _commanded(request: Request, said: JsonObject) -> Response:
    id, status = await command(context(request), tenant(request), said)
    return JsonResponse({"id": id, "status": status}, 202)
