"""The Starlette application: the job API, the webhooks, the health checks."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentflow.web import ingestion, jobs, rest
from agentflow.web.context import Context
from agentflow.web.openapi import document
from agentflow.web.problems import HANDLERS
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Endpoint

ROUTES = [jobs.jobs, rest.inbox, rest.files, rest.catalogue, rest.health, ingestion.webhooks]
OPERATIONS = [operation for routes in ROUTES for operation in routes.operations]

OPENAPI = "/openapi.json"


def create_web(ctx: Context | None = None) -> Starlette:
    """Routes and error answers. Until `state.agentflow` holds a `Context`, requests get 503."""
    page = document(OPERATIONS)

    async def openapi(request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        return JsonResponse({**page, "servers": [{"url": root or "/"}]})

    paths: dict[str, dict[str, Endpoint]] = {}
    for o in OPERATIONS:
        paths.setdefault(o.path, {})[o.method] = o.endpoint
    routes = [_route(path, endpoints) for path, endpoints in paths.items()]
    web = Starlette(routes=[*routes, Route(OPENAPI, openapi)], exception_handlers=HANDLERS)
    web.router.redirect_slashes = False  # a webhook that is sent elsewhere is lost
    web.state.agentflow = ctx
    return web


def _route(path: str, endpoints: dict[str, Endpoint]) -> Route:
    """One route for all methods of a path, so that a 405 names every one of them."""

    async def dispatch(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await endpoints[method](request)

    return Route(path, dispatch, methods=list(endpoints), name=path)
