"""A server of somebody else's that is told by callbacks, and fails now and then."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import Simulator


class Receiver(Simulator):
    """`heard` holds the last event of each id, `times` how often each was taken with 2xx."""

    def __init__(self, secret: str, seed: int) -> None:
        super().__init__(secret=secret)
        self.heard: dict[str, dict[str, Any]] = {}
        self.times: Counter[str] = Counter()
        self.forged = 0
        self._dice = random.Random(seed)

    def routes(self) -> Sequence[BaseRoute]:
        return [Route("/hook", self._take, methods=["POST"])]

    def env(self) -> dict[str, str]:
        return {
            "AGENTFLOW_CALLBACK_SECRET": self.secret,
            "AGENTFLOW_CALLBACK_ALLOW": f'["{urlsplit(self.url).netloc}"]',
        }

    @property
    def hook(self) -> str:
        return f"{self.url}/hook"

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Self]:
        async with super().serve(port):
            yield self

    async def _take(self, request: Request) -> Response:
        body = await request.body()
        try:
            Webhook(self.secret).verify(body, dict(request.headers))
        except WebhookVerificationError:
            self.forged += 1
            return Response(status_code=401)
        if self._dice.random() < 0.1:
            return Response(status_code=503)
        event = orjson.loads(body)
        self.heard[event["id"]] = event
        self.times[event["id"]] += 1
        return Response(status_code=204)
