"""The Starlette application: the job API, the webhooks, the health checks."""

from __future__ import annotations

from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agentflow.web import batch, bulk, feed, ingestion, jobs, metrics, pauses, rest, usage
from agentflow.web.context import Context, admit
from agentflow.web.guard import SecurityHeaders
from agentflow.web.openapi import document
from agentflow.web.problems import HANDLERS
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Operation

ROUTES = [
    *(batch.batch, bulk.bulk, jobs.jobs),  # in this order: /v1/jobs/batch is no job's id
    *(feed.feed, pauses.pauses, usage.usage, rest.inbox, rest.files, rest.catalogue, rest.health),
    *(ingestion.webhooks, metrics.numbers),
]
OPERATIONS = [operation for routes in ROUTES for operation in routes.operations]

OPENAPI = "/openapi.json"


class Web(Starlette):
    def build_middleware_stack(self) -> ASGIApp:
        """Outside of all others, also of the one that answers for our bugs."""
        return SecurityHeaders(super().build_middleware_stack())


def create_web(ctx: Context | None = None) -> Starlette:
    """Routes and error answers. Until `state.agentflow` holds a `Context`, requests get 503."""

    async def openapi(request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        started: Context | None = request.app.state.agentflow
        required = started is not None and started.settings.require_keys is True
        return JsonResponse({**_page(required), "servers": [{"url": root or "/"}]})

    paths: dict[str, dict[str, Operation]] = {}
    for o in OPERATIONS:
        paths.setdefault(o.path, {})[o.method] = o
    routes = [_route(path, operations) for path, operations in paths.items()]
    web = Web(routes=[*routes, Route(OPENAPI, openapi)], exception_handlers=HANDLERS)
    web.router.redirect_slashes = False  # a webhook that is sent elsewhere is lost
    web.state.agentflow = ctx
    return web


@cache
def _page(keys: bool) -> dict[str, Any]:
    """Made when it is first asked for, as workers and writers are never."""
    return document(OPERATIONS, keys=keys)


def _route(path: str, operations: dict[str, Operation]) -> Route:
    """One route for all methods of a path, so that a 405 names every one of them."""

    async def dispatch(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        if operation.scope != "open":
            await admit(request, operation.scope, submits=operation.submits)
        return await operation.endpoint(request)

    return Route(path, dispatch, methods=list(operations), name=path)
