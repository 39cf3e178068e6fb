"""Webhooks: verify the raw bytes, store them, say yes. Understanding them is the writer's work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import datetime

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentflow.core.providers import FetchesKeys, Verified
from agentflow.errors import KeysUnavailable, NotFound, SignatureError, UnknownKey
from agentflow.plugins.catalogue import Ready
from agentflow.store.inserts import InboxEntry
from agentflow.store.observing import trace_of
from agentflow.telemetry import traces
from agentflow.types import DEFAULT_TENANT, new_id
from agentflow.web import schemas
from agentflow.web.context import context, read
from agentflow.web.keyring import fetch
from agentflow.web.measuring import metrics_of
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes

log = structlog.get_logger(__name__)

webhooks = Routes("webhooks")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
_KEPT_HEADERS = 40
_SECRET = re.compile(r"auth|cookie|signature|secret|token|key|passw", re.I)


@webhooks.add(
    "POST",
    "/webhooks/{provider}",
    answers={202: schemas.Received, 401: None, 413: None},
)
async def receive(request: Request) -> Response:
    """Receive a provider's webhook

    202 once it is stored, also if it is a duplicate or nobody knows what it is about.
    """
    ctx = context(request)
    ready = _ready(ctx.catalogue.providers.get(request.path_params["provider"]))
    raw = await read(request, ready.provider.max_body)
    now = ctx.clock.now()
    received = metrics_of(request).deliveries
    try:
        verified = await _verified(ready, request, raw, now)
    except SignatureError:
        received[ready.provider.name, "refused"].inc()
        raise
    token = request.path_params.get("token")
    token = token if token and _TOKEN.fullmatch(token) else None
    async with _span(ready, token, request) as trace:
        entry = InboxEntry(
            id=new_id("dlv"),
            kind="webhook",
            body=raw,
            received_at=now,
            tenant=DEFAULT_TENANT,  # the signature is the proof, whatever page it came from
            provider=ready.provider.name,
            dedup_key=_dedup_key(verified.delivery_id, raw, token),
            token=token,
            headers=_kept(request, verified.proof) | trace,
        )
        stored = await ctx.intake.add_inbox(entry)
    result = "stored" if stored.new else "duplicate"
    received[ready.provider.name, result].inc()
    return JsonResponse({"id": stored.id, "status": result}, 202)


@asynccontextmanager
async def _span(ready: Ready, token: str | None, request: Request) -> AsyncIterator[dict[str, str]]:
    """A span in the trace of the job the token names; else in that of the sender. The block gets
    the header by which the writer finds it."""
    name, parent = ready.provider.name, traces.received(request.headers)
    if token is not None and traces.active():
        found = await trace_of(name, token)
        parent = traces.context_of(found) if found else parent
    with traces.span(f"webhook {name}", parent, kind=traces.SpanKind.SERVER, provider=name):
        current = traces.current()
        yield {traces.HEADER: current} if current else {}


@webhooks.add(
    "POST",
    "/webhooks/{provider}/{token}",
    answers={202: schemas.Received, 401: None, 413: None},
)
async def receive_for(request: Request) -> Response:
    """Receive a webhook about one attempt

    The token only says which attempt; the signature is what proves the sender.
    """
    return await receive(request)


def _ready(ready: Ready | None) -> Ready:
    if ready is None or ready.provider.webhooks == "none":
        raise NotFound("No such provider takes webhooks here")
    if ready.verifier is None:
        why = f"Webhooks of {ready.provider.name} are off: {ready.webhook_problem}"
        raise HTTPException(503, why, {"Retry-After": "60"})
    return ready


async def _verified(ready: Ready, request: Request, raw: bytes, now: datetime) -> Verified:
    """What the signature vouches for. Raises `SignatureError`, whatever the plugin's scheme does
    with what a stranger wrote; `KeysUnavailable` where it cannot be told."""
    verifier, name = ready.verifier, ready.provider.name
    assert verifier is not None, "_ready refuses a provider without"
    try:
        try:
            return verifier.verify(request.headers, raw, now)
        except UnknownKey:
            if not isinstance(verifier, FetchesKeys):
                raise
            await verifier.refresh(fetch, now)
            return verifier.verify(request.headers, raw, now)
    except SignatureError as error:
        log.warning("Webhook refused", provider=name, why=error.message)
        raise
    except KeysUnavailable as error:
        log.error("Webhook put off", provider=name, why=error.message)
        raise
    except Exception as error:
        log.error("A signature scheme broke its contract", provider=name, exc_info=error)
        raise SignatureError("the signature cannot be read") from None


def _dedup_key(delivery_id: str | None, raw: bytes, token: str | None) -> str:
    """The provider's own id of the delivery, or what it says, and of which attempt: a body that
    names no work says of each the same."""
    if delivery_id:
        if len(delivery_id) <= 255:
            return f"id:{delivery_id}"
        return f"sha256:{hashlib.sha256(delivery_id.encode(errors='replace')).hexdigest()}"
    said = raw if token is None else token.encode() + b"\n" + raw
    return f"sha256:{hashlib.sha256(said).hexdigest()}"


def _kept(request: Request, proof: Collection[str]) -> dict[str, str]:
    """The headers worth keeping: none that could hold a secret or held the `proof`, none that is
    absurd."""
    return {
        name: value
        for name, value in list(request.headers.items())[:_KEPT_HEADERS]
        if not _SECRET.search(name) and name not in proof
        if len(value) <= 500 and value.isprintable()
    }
