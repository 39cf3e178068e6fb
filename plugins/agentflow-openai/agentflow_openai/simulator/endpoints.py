"""The project's webhook endpoints, made and tested over the API; each signs with its own secret."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.sender import Outbox, Sender
from agentflow.testing.simulator import Json
from agentflow.types import new_id, utcnow
from agentflow.webhooks.signatures import new_secret, sign

if TYPE_CHECKING:
    from agentflow_openai.simulator.openai import OpenAISimulator

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True)
class WebhookEndpoint:
    name: str
    url: str
    event_types: Sequence[str]
    id: str = field(default_factory=lambda: new_id("we"))
    created_at: int = field(default_factory=lambda: int(time.time()))
    secrets: list[str] = field(default_factory=lambda: [new_secret()])
    """The newest first; the others still sign along."""

    def view(self, *, secret: bool = False) -> dict[str, Any]:
        shown = {
            "id": self.id,
            "object": "webhook_endpoint",
            "name": self.name,
            "url": self.url,
            "event_types": list(self.event_types),
            "created_at": self.created_at,
            "signing_secret_hint": f"whsec_…{self.secrets[0][-4:]}",
        }
        return shown | ({"signing_secret": self.secrets[0]} if secret else {})

    def sign(self, delivery_id: str, sent_at: datetime, body: bytes, forged: bool) -> Any:
        secrets = [new_secret()] if forged else self.secrets
        signed = [sign(secret, delivery_id, sent_at, body) for secret in secrets]
        written = " ".join(each["webhook-signature"] for each in signed)
        return {**signed[0], "webhook-signature": written}


class Endpoints:
    def __init__(self, sim: OpenAISimulator) -> None:
        self.sim = sim
        self.all: dict[str, WebhookEndpoint] = {}
        self._senders: list[Sender] = []

    def routes(self, guarded: Callable[[Endpoint], Endpoint]) -> Sequence[BaseRoute]:
        one = "/v1/webhook_endpoints/{id}"
        return [
            Route("/v1/webhook_endpoints", guarded(self._all), methods=["GET", "POST"]),
            Route(one, guarded(self._known(self._one)), methods=["GET", "POST", "DELETE"]),
            Route(f"{one}/rotate_secret", guarded(self._known(self._rotate)), methods=["POST"]),
            Route(f"{one}/test", guarded(self._known(self._test)), methods=["POST"]),
        ]

    def announce(self, type: str, body: bytes) -> None:
        """Send the event to every endpoint that wants its type."""
        for endpoint in self.all.values():
            if type in endpoint.event_types:
                sender = self._sender(endpoint)
                Outbox(sender, self.sim.spawn, endpoint.url, self.sim.hit).post(body, last=True)

    async def aclose(self) -> None:
        for sender in self._senders:
            await sender.aclose()

    def _sender(self, endpoint: WebhookEndpoint) -> Sender:
        sim = self.sim
        sender = Sender(endpoint.sign, sim.faults, sim.stats, sim.sender.retries)
        self._senders.append(sender)
        return sender

    def _known(self, work: Callable[[Request, WebhookEndpoint], Awaitable[Response]]) -> Endpoint:
        async def answer(request: Request) -> Response:
            endpoint = self.all.get(request.path_params["id"])
            if endpoint is None:
                return self.sim.problem(404, "invalid_request_error", "No webhook endpoint found.")
            return await work(request, endpoint)

        return answer

    async def _all(self, request: Request) -> Response:
        if request.method == "GET":
            return self._listed(request.query_params)
        asked = await _body(request)
        made = WebhookEndpoint(asked["name"], asked["url"], asked["event_types"])
        self.all[made.id] = made
        return Json(made.view(secret=True))

    def _listed(self, query: Mapping[str, str]) -> Response:
        ids = list(self.all)
        ids = ids[ids.index(query["after"]) + 1 :] if "after" in query else ids
        page = ids[: int(query.get("limit", "20"))]
        shown = [self.all[id].view() for id in page]
        return Json({"object": "list", "data": shown, "has_more": len(ids) > len(page)})

    async def _one(self, request: Request, endpoint: WebhookEndpoint) -> Response:
        if request.method == "DELETE":
            del self.all[endpoint.id]
            gone = {"id": endpoint.id, "object": "webhook_endpoint.deleted", "deleted": True}
            return Json(gone)
        if request.method == "POST":
            for name, value in (await _body(request)).items():
                setattr(endpoint, name, value)
        return Json(endpoint.view())

    async def _rotate(self, request: Request, endpoint: WebhookEndpoint) -> Response:
        keep = (await _body(request)).get("keep_old_secret_active_for_24_hours", False)
        endpoint.secrets = [new_secret(), *(endpoint.secrets[:1] if keep else [])]
        return Json(endpoint.view(secret=True))

    async def _test(self, request: Request, endpoint: WebhookEndpoint) -> Response:
        type = (await _body(request))["event_type"]
        body = event(type, "resp_sample")
        headers = endpoint.sign(new_id("wh"), utcnow(), body, self.sim.hit("wrong_signature"))
        headers = {"content-type": "application/json", **headers}
        try:
            status = await self.sim.poster.post(endpoint.url, headers, body)
        except OSError as error:
            return self.sim.problem(400, "invalid_request_error", f"No answer: {error}")
        tested = {"object": "webhook_endpoint.test", "webhook_endpoint_id": endpoint.id}
        return Json({**tested, "event_type": type, "status_code": status, "success": True})


def event(type: str, id: str) -> bytes:
    """The thin body of a webhook."""
    said = {"id": new_id("evt"), "object": "event", "created_at": int(time.time()), "type": type}
    return orjson.dumps({**said, "data": {"id": id}})


async def _body(request: Request) -> dict[str, Any]:
    raw = await request.body()
    read: dict[str, Any] = orjson.loads(raw) if raw else {}
    return read
