"""What the routes work with, and how they read a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentflow.artifacts import ArtifactStore
from agentflow.core.submission import JobSpec, NewJob
from agentflow.errors import InvalidInput
from agentflow.plugins.catalogue import Catalogue
from agentflow.settings import Settings
from agentflow.store.intake import Intake
from agentflow.transport.bus import Bus
from agentflow.types import DEFAULT_TENANT, Clock

M = TypeVar("M", bound=BaseModel)

MAX_BODY = 1 << 20
"""Bytes of a request to the API, if `AGENTFLOW_MAX_INPUT` needs no more. Webhooks have their
provider's own limit."""

_ROOM = 1 << 16
"""What a job may say beside its input."""

_MOST_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    catalogue: Catalogue
    intake: Intake
    bus: Bus
    clock: Clock
    artifacts: ArtifactStore
    prepare: Callable[[JobSpec, str], NewJob]
    missing: Callable[[], list[str]]
    """What keeps this process from being ready, in words."""


def context(request: Request) -> Context:
    found: Context | None = request.app.state.agentflow
    if found is None:
        raise HTTPException(503, "agentflow is not started: run its lifespan", {"Retry-After": "2"})
    return found


def tenant(request: Request) -> str:
    """Until API keys exist there is one tenant; everything below already asks for it. 503 before
    the start: who asks for a tenant is about to read.

    Raises 403 for what a page of another site can make its visitor's browser send without being
    allowed to (a form or a plain-text POST); JSON from there needs the host application's CORS.
    """
    context(request)
    origin = request.headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    json = request.headers.get("content-type", "").startswith("application/json")
    if foreign and request.method not in {"GET", "HEAD"} and not json:
        raise HTTPException(403, "From another site's page, send Content-Type: application/json.")
    return DEFAULT_TENANT


async def read(request: Request, most: int) -> bytes:
    """The raw body. 413 as soon as it is known to be larger than `most` bytes.

    Starlette's own limit answers a large Content-Length in plain text.
    """
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and (len(said) > 18 or int(said) > most):
        raise HTTPException(413, f"At most {most} bytes")
    whole = bytearray()
    async for chunk in request.stream():
        whole += chunk
        if len(whole) > most:
            raise HTTPException(413, f"At most {most} bytes")
    return bytes(whole)


async def body(request: Request, model: type[M]) -> M:
    """The JSON body as `model`. Raises `InvalidInput` with every fault, 400 for no JSON."""
    raw = await read(request, max(MAX_BODY, context(request).settings.max_input + _ROOM))
    try:
        orjson.loads(raw)  # stricter than pydantic's parser: NaN, infinity, lone surrogates
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"The body is no JSON: {error}") from None
    # From the text: pydantic keeps integers whole that orjson would round.
    return _checked(lambda: model.model_validate_json(raw), "body")


def query(request: Request, model: type[M]) -> M:
    """The query parameters as `model`; unknown or repeated ones are faults. Raises
    `InvalidInput`."""
    given = request.query_params.multi_items()
    said = dict(given)
    if len(said) < len(given):
        raise invalid("query", "each parameter is given once")
    return _checked(lambda: model.model_validate(said), "query")


def invalid(loc: str, msg: str) -> InvalidInput:
    return InvalidInput(f"{loc}: {msg}", detail={"errors": [{"loc": loc, "msg": msg}]})


def _checked(validate: Callable[[], M], whole: str) -> M:
    try:
        return validate()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        faults = [
            {"loc": ".".join(map(str, e["loc"]))[:200] or whole, "msg": e["msg"]}
            for e in found[:_MOST_FAULTS]
        ]
        told = "; ".join(f"{f['loc']}: {f['msg']}" for f in faults[:5])
        raise InvalidInput(told, detail={"errors": faults}) from None
