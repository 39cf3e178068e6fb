"""A provider under limits, and the service behind it, which counts what comes."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentflow import AgentFlow, Call, Limit, Policy, Provider
from support.servers import free_port
from support.serving import http_server

PER_SECOND, AT_ONCE = 50, 10

URL = "COUNTED_URL"


class Work(BaseModel):
    seconds: float = 0.1


provider = Provider(
    "counted", limits=Limit(rate=f"{PER_SECOND}/second", concurrent=AT_ONCE), description="A test's"
)


@provider.task("work", input=Work, policy=Policy(timeout=30, max_attempts=1))
async def work(call: Call, input: Work) -> Any:
    about = {"seconds": input.seconds, "process": os.getpid(), "key": call.idempotency_key}
    answer = await call.http.post(f"{os.environ[URL]}/work", json=about)
    return answer.raise_for_status().json()


app = AgentFlow(providers=[provider], plugins=[])


class Counting:
    """What the service has seen: when each call came, and how many were there at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.came: list[float] = []
        self.at_once: list[tuple[float, int]] = []
        self.under_way: Counter[int] = Counter()
        """By the process that called."""
        self.keys: Counter[str] = Counter()

    async def answer(self, request: Request) -> Response:
        said = await request.json()
        self.came.append(time.monotonic())
        self.keys[said["key"]] += 1
        self.under_way[said["process"]] += 1
        self.at_once.append((time.monotonic(), self.under_way.total()))
        try:
            await asyncio.sleep(said["seconds"])
        finally:
            self.under_way[said["process"]] -= 1
        return JSONResponse({"n": len(self.came)})

    def most_at_once(self, since: float = 0.0) -> int:
        return max((n for at, n in self.at_once if at >= since), default=0)

    def most_in(self, window: float) -> int:
        """Calls in the fullest window of so many seconds, wherever it begins."""
        most = first = 0
        for last, came in enumerate(self.came):
            while came - self.came[first] >= window:
                first += 1
            most = max(most, last - first + 1)
        return most


@asynccontextmanager
async def counting() -> AsyncIterator[Counting]:
    port = free_port()
    seen = Counting(f"http://127.0.0.1:{port}")
    asgi = Starlette(routes=[Route("/work", seen.answer, methods=["POST"])])
    async with http_server(asgi, port):
        yield seen
