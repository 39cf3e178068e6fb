"""Errors as RFC 9457 problem details: `{type, title, status, detail}` and what the error adds."""

from __future__ import annotations

from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from agentflow.artifacts import ArtifactStoreError
from agentflow.errors import (
    AgentflowError,
    Conflict,
    InvalidInput,
    KeysUnavailable,
    NotFound,
    SignatureError,
    StoreUnavailable,
)
from agentflow.web.responses import JsonResponse

log = structlog.get_logger(__name__)

_STATUS: dict[type[AgentflowError], tuple[int, str]] = {
    InvalidInput: (422, "The request does not fit"),
    NotFound: (404, "Not found"),
    Conflict: (409, "Conflict"),
    SignatureError: (401, "Bad signature"),
    KeysUnavailable: (503, "The keys are out of reach"),
    StoreUnavailable: (503, "The store does not answer"),
    ArtifactStoreError: (503, "The files are out of reach"),
}

_TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    413: "Too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    429: "Too many requests",
    503: "Unavailable",
}


class ProblemResponse(JsonResponse):
    media_type = "application/problem+json"


def problem(
    status: int, title: str, detail: str, headers: dict[str, str] | None = None, **more: Any
) -> ProblemResponse:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return ProblemResponse(body, status, headers)


async def on_agentflow_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AgentflowError), "registered for these alone"
    for kind, (status, title) in _STATUS.items():
        if isinstance(error, kind):
            more = error.detail if isinstance(error, InvalidInput) else {}
            wait = "60" if kind is KeysUnavailable else "2"
            headers = {"Retry-After": wait} if status == 503 else None
            if isinstance(error, ArtifactStoreError):  # it names places on our disk
                log.error("The artifact store failed", error=error.message)
                return problem(status, title, "The artifact store failed.", headers)
            return problem(status, title, error.message, headers, **more)
    return await on_bug(request, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), f"{request.url.path}: registered for these alone"
    title = _TITLES.get(error.status_code, "Error")
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, title, error.detail or title, headers)


async def on_gone(request: Request, error: Exception) -> Response:
    """The client went away in the middle of its request: nobody reads this."""
    log.info("The client went away", path=request.url.path, error=type(error).__name__)
    return problem(400, "Bad request", "The request ended before its body did.")


async def on_bug(request: Request, error: Exception) -> Response:
    """Ours. The caller learns nothing but that; the log has the rest."""
    log.error("Request failed", path=request.url.path, exc_info=error)
    return problem(500, "Internal error", "This is a bug in agentflow; its log says more.")


HANDLERS: dict[Any, Any] = {
    AgentflowError: on_agentflow_error,
    HTTPException: on_http_error,
    ClientDisconnect: on_gone,
    Exception: on_bug,
}
