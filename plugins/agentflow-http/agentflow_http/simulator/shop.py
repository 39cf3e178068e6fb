"""A shop: orders are made at once, and once for each idempotency key. Its other paths answer in
every way that HTTP has."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import Json
from agentflow_http.simulator.declared import DeclaredSimulator

PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)


class ShopSimulator(DeclaredSimulator):
    """`stats.created` counts orders by their idempotency key, or by what is ordered."""

    name = "shop"

    def __init__(self, *, key: str, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.key = key
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        """Method, target, headers and body of every request."""
        self.orders: dict[str, dict[str, Any]] = {}
        self.tokens = 0

    def service(self) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "private": True,
            "auth": {"kind": "bearer", "token": self.key},
            "methods": ["GET", "HEAD", "POST", "PUT", "DELETE"],
            "tasks": {
                "order": {
                    "path": "/orders/{customer}",
                    "defaults": {"amount": 1},
                    "output": "/order",
                }
            },
        }

    def env(self) -> dict[str, str]:
        """It may be called without its declaration too, by who shows its key in another way."""
        return {**super().env(), "AGENTFLOW_HTTP_PRIVATE": json.dumps([urlsplit(self.url).netloc])}

    def routes(self) -> Sequence[BaseRoute]:
        every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        return [
            Route("/oauth/token", self._token, methods=["POST"]),
            Route("/orders/{customer:path}", self._order, methods=["POST"]),
            Route("/orders/{customer:path}", self._orders),
            Route("/answer/{kind}", self._answer, methods=every),
            Route("/{path:path}", self._echo, methods=every),
        ]

    def allowed(self, request: Request) -> bool:
        """As a bearer token, a header or in the query."""
        given = {
            request.headers.get("authorization", "").removeprefix("Bearer "),
            request.headers.get("x-api-key"),
            request.query_params.get("api_key"),
        }
        return bool({self.key, f"token-{self.tokens}-{self.key}"} & given)

    async def _see(self, request: Request) -> bytes:
        body = await request.body()
        target = request.scope["raw_path"].decode()
        target += f"?{request.url.query}" if request.url.query else ""
        self.seen.append((request.method, target, dict(request.headers), body))
        return body

    async def _token(self, request: Request) -> Response:
        form = (await self._see(request)).decode()
        if f"client_secret={self.key}" not in form:
            return Json({"error": "invalid_client"}, 401)
        self.tokens += 1
        token = f"token-{self.tokens}-{self.key}"
        return Json({"access_token": token, "token_type": "bearer", "expires_in": 3600})

    async def _order(self, request: Request) -> Response:
        body = await self._see(request)
        if not self.allowed(request):
            return Json({"error": {"message": f"{self.key} would be right"}}, 401)
        asked = orjson.loads(body)
        key = request.headers.get("idempotency-key") or str(asked.get("item"))

        async def create() -> Response:
            known = request.headers.get("idempotency-key") in self.orders
            if not known:
                self.stats.created[key] += 1
                self.orders[key] = {"id": uuid.uuid4().hex, **asked}
            customer = request.path_params["customer"]
            return Json({"order": {**self.orders[key], "customer": customer}}, 201)

        return await self.faulty(create, self.hit)

    async def _orders(self, request: Request) -> Response:
        await self._see(request)
        if not self.allowed(request):
            return Json({"error": {"message": f"{self.key} would be right"}}, 401)

        async def listed() -> Response:
            return Json({"orders": list(self.orders.values())})

        return await self.faulty(listed, self.hit)

    async def _echo(self, request: Request) -> Response:
        body = await self._see(request)
        if not self.allowed(request):
            return Json({"message": "who are you?"}, 401)
        return Json(
            {
                "method": request.method,
                "path": request.url.path,
                "query": request.query_params.multi_items(),
                "headers": dict(request.headers),
                "body": body.decode(errors="replace"),
            }
        )

    async def _answer(self, request: Request) -> Response:
        await self._see(request)
        kind = request.path_params["kind"]
        self.stats.counts[kind] += 1
        match kind:
            case "text":
                return PlainTextResponse("Grüße", media_type="text/plain; charset=iso-8859-1")
            case "latin":
                return Response("Grüße".encode("latin-1"), media_type="text/plain;charset=latin-1")
            case "png":
                return Response(PNG, media_type="image/png")
            case "empty":
                return Response(status_code=204)
            case "broken":
                return Response(b"{", media_type="application/json")
            case "redirect":
                return RedirectResponse("/answer/png")
            case "endless":
                return StreamingResponse(_endless(), media_type="text/plain")
            case "late":
                await asyncio.sleep(30)
                return Response(status_code=204)
            case _:
                status, _, wait = kind.partition("-")
                headers = {"retry-after": wait} if wait else {}
                said = {"error": {"message": f"told {status} and {self.key}"}, "code": "E1"}
                return Response(orjson.dumps(said), int(status), headers)


async def _endless() -> Any:
    while True:
        yield b"x" * 65536
        await asyncio.sleep(0.001)
