"""Schemes at the webhook route: keys fetched over HTTP meanwhile, and proofs that are not kept."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.fakes import rows
from support.servers import free_port
from support.serving import http_server

from agentflow import AgentFlow, Ed25519Jwks, Provider, Settings, StaticHeader
from agentflow.app import standalone
from agentflow.types import utcnow

SECRET = "a-secret-of-our-own-choice"


class Keys(BaseModel):
    secret: str = SECRET


@dataclass
class World:
    http: httpx.AsyncClient
    pair: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    answers: list[int] = field(default_factory=list)
    asked: int = 0
    padding: int = 0

    async def jwks(self, _: Request) -> Response:
        self.asked += 1
        await asyncio.sleep(0.05)
        status = self.answers.pop(0) if self.answers else 200
        x = base64.urlsafe_b64encode(self.pair.public_key().public_bytes_raw()).decode()
        key = {"kty": "OKP", "crv": "Ed25519", "x": x.rstrip("=")}
        said = orjson.dumps({"keys": [key]}) + b" " * self.padding
        return Response(said, status, {"location": "/jwks"})

    async def deliver(self, id: str = "r-1", pair: Ed25519PrivateKey | None = None) -> Any:
        body, stamp = b'{"status": "OK"}', str(int(utcnow().timestamp()))
        signed = f"{id}\nuser\n{stamp}\n{hashlib.sha256(body).hexdigest()}".encode()
        said = {"Request-Id": id, "User-Id": "user", "Timestamp": stamp}
        said["Signature"] = (pair or self.pair).sign(signed).hex()
        headers = {f"X-Fal-Webhook-{n}": v for n, v in said.items()}
        return await self.http.post("/webhooks/falling", content=body, headers=headers)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    keys, port = free_port(), free_port()
    scheme = Ed25519Jwks.fal(f"http://127.0.0.1:{keys}/jwks")
    falling = Provider("falling", webhooks="account", scheme=scheme)
    static = StaticHeader("secret", "x-plain")
    fixed = Provider("fixed", settings=Keys, webhooks="account", scheme=static)
    settings = Settings(data_dir=tmp_path, port=port, public_url="http://agentflow.test")
    app = AgentFlow(providers=[falling, fixed], plugins=[], settings=settings)
    async with httpx.AsyncClient(base_url=settings.url) as http:
        one = World(http)
        routes = [Route("/jwks", one.jwks)]
        async with (
            http_server(Starlette(routes=routes), keys),
            http_server(standalone(app), port),
        ):
            yield one


async def test_a_delivery_is_proven_by_keys_fetched_meanwhile(world: World) -> None:
    first = await asyncio.gather(*(world.deliver(f"r-{n}") for n in range(8)))
    assert [answer.status_code for answer in first] == [202] * 8
    assert world.asked == 1, "one asks, the others wait"
    again = await world.deliver("r-1")
    assert again.json()["status"] == "duplicate"


async def test_a_forged_delivery_makes_us_ask_once_and_is_refused(world: World) -> None:
    forger = Ed25519PrivateKey.generate()
    answers = await asyncio.gather(*(world.deliver(f"r-{n}", forger) for n in range(8)))
    assert [answer.status_code for answer in answers] == [401] * 8
    assert world.asked == 1
    assert await rows("SELECT id FROM agentflow_inbox") == []


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_while_keys_are_out_of_reach_the_sender_is_asked_to_come_again(
    world: World, status: int
) -> None:
    world.answers = [status]
    for _ in range(3):
        answer = await world.deliver()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert world.asked == 1
    assert await rows("SELECT id FROM agentflow_inbox") == []


async def test_a_document_of_keys_without_end_is_not_read(world: World) -> None:
    world.padding = 100_000
    assert (await world.deliver()).status_code == 503


async def test_the_secret_of_a_static_header_is_not_stored(world: World) -> None:
    headers = {"X-Plain": SECRET, "X-Event": "made"}
    answer = await world.http.post("/webhooks/fixed", content=b"{}", headers=headers)
    assert answer.status_code == 202
    shown = (await world.http.get(f"/v1/deliveries/{answer.json()['id']}")).text
    assert "x-event" in shown
    assert SECRET not in shown
    wrong = await world.http.post("/webhooks/fixed", content=b"{}", headers={"X-Plain": "x" * 26})
    assert wrong.status_code == 401


async def test_a_body_without_any_id_is_news_of_each_attempt_it_is_sent_about(
    world: World,
) -> None:
    async def deliver(place: str) -> str:
        headers = {"X-Plain": SECRET}
        answer = await world.http.post(
            f"/webhooks/fixed{place}", content=b'{"status": "done"}', headers=headers
        )
        return str(answer.json()["status"])

    said = [await deliver(place) for place in (f"/{'a' * 32}", f"/{'b' * 32}", "")]
    assert said == ["stored"] * 3
    assert [await deliver(place) for place in (f"/{'b' * 32}", "")] == ["duplicate"] * 2
