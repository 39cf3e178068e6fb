"""What the routes work with, and how they read a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentflow.artifacts import ArtifactStore
from agentflow.clock import Clock
from agentflow.core.submission import JobSpec, NewJob
from agentflow.errors import AgentflowError, InvalidInput
from agentflow.plugins.catalogue import Catalogue
from agentflow.settings import Settings
from agentflow.store.intake import Intake
from agentflow.transport.bus import Bus
from agentflow.transport.live import Inlet
from agentflow.web.auth import HERE, Authenticator, Principal, address_of, presented_key
from agentflow.web.guard import from_here
from agentflow.web.limiting import Backlog, RateLimits

M = TypeVar("M", bound=BaseModel)

MAX_BODY = 1 << 20
"""Bytes of a request to the API, if `AGENTFLOW_MAX_INPUT` needs no more. Webhooks have their
provider's own limit."""

_ROOM = 1 << 16
"""What a job may say beside its input."""

_MOST_FAULTS = 20

_PRINCIPAL = "agentflow.principal"


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
    live: Inlet
    auth: Authenticator = field(default_factory=Authenticator)
    rates: RateLimits = field(default_factory=RateLimits)
    backlog: Backlog = field(default_factory=Backlog)


def context(request: Request) -> Context:
    found: Context | None = request.app.state.agentflow
    if found is None:
        raise HTTPException(503, "agentflow is not started: run its lifespan", {"Retry-After": "2"})
    return found


async def admit(request: Request, scope: str, *, submits: bool) -> None:
    """Let the request in to a route that needs `scope`, once for all that the route does.

    Raises 401, 403, 429, 503 and `StoreUnavailable`.
    """
    ctx = context(request)
    who = await identify(request, ctx)
    if ctx.settings.rate_limit is not None:
        await ctx.rates.check(ctx.settings.rate_limit, who.key or _address(request))
    who.require(scope)
    if submits:
        await ctx.backlog.check(who.tenant, ctx.settings.max_backlog)
    request.scope[_PRINCIPAL] = who


async def identify(request: Request, ctx: Context) -> Principal:
    """Who asks. Raises 401, 403 and 429."""
    required = ctx.settings.require_keys is True
    key = presented_key(request.headers, required=required)
    if key is not None:
        return await ctx.auth.principal(key, _address(request), ctx.clock.now())
    _refuse_foreign_forms(request)
    return HERE


def _refuse_foreign_forms(request: Request) -> None:
    """Raise 403 for what a page of another site can make its visitor's browser send without being
    allowed to (a form or a plain-text POST); JSON from there needs the host application's CORS,
    and so does a key."""
    origin = request.headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    json = request.headers.get("content-type", "").startswith("application/json")
    if foreign and request.method not in {"GET", "HEAD"} and not json:
        raise HTTPException(403, "From another site's page, send Content-Type: application/json.")


def principal(request: Request) -> Principal:
    """Who was let in."""
    found = request.scope.get(_PRINCIPAL)
    assert isinstance(found, Principal), "a route that is open to all knows nobody"
    return found


def tenant(request: Request) -> str:
    """Whose rows this request may see."""
    return principal(request).tenant


async def confides(request: Request, ctx: Context) -> bool:
    """Whether an open route may tell what concerns only those who run the server: to a good key
    or this machine, and to everybody where no keys are needed."""
    if ctx.settings.require_keys is not True or from_here(request.scope):
        return True
    try:
        await identify(request, ctx)
    except (HTTPException, AgentflowError):
        return False
    return True


def _address(request: Request) -> str:
    return address_of(request.client.host if request.client else None)


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
