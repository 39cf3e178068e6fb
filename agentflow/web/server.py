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

ROUTES = [jobs.jobs, rest.inbox, rest.files, rest.catalogue, rest.health, ingestion.webhooks]
OPERATIONS = [operation for routes in ROUTES for operation in routes.operations]

MAX_BODY = 1 << 20
"""Bytes of a request to the API. Webhooks have their provider's own limit."""


def create_web(ctx: Context | None = None) -> Starlette:
    """Routes and error answers. Until `state.agentflow` holds a `Context`, requests get 503."""
    page = document(OPERATIONS)

    async def openapi(request: Request) -> Response:
        del request
        return JsonResponse(page)

    routes = [
        Route(o.path, o.endpoint, methods=[o.method], max_body_size=_limit(o.path))
        for o in OPERATIONS
    ]
    web = Starlette(routes=[*routes, Route("/openapi.json", openapi)], exception_handlers=HANDLERS)
    web.state.agentflow = ctx
    return web


def _limit(path: str) -> int | None:
    return None if path.startswith("/webhooks/") else MAX_BODY
