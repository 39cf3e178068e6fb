"""agentflow and a simulated OpenAI, joined over loopback HTTP."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from agentflow_openai.simulator import OpenAISimulator, env, simulator

from agentflow import AgentFlow, Artifact, Result
from agentflow.webhooks.signatures import new_secret
from support.servers import free_port
from support.whole import Whole, whole

KEY = "sk-test-very-secret-key"
HELLO = {"model": "gpt-x", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class World(Whole):
    patience = 60.0  # batches are polled for
    sim: OpenAISimulator
    made: list[bytes]

    async def file(self, content: bytes) -> str:
        """The id of a file of ours with this content."""
        self.made.append(content)  # too long for an input
        job = await self.ends("files.make", None)
        return str(job["result"]["artifacts"][0]["id"])

    async def content(self, job: Any, index: int = 0) -> bytes:
        """The bytes of a job's file."""
        id = job["result"]["artifacts"][index]["id"]
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{self.url}/v1/artifacts/{id}", timeout=60)
        return answer.raise_for_status().content


@asynccontextmanager
async def world(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    webhooks: bool = True,
    base_url: str | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """With `base_url`, calls go to another service than the simulator."""
    port = free_port()
    async with simulator(new_secret(), KEY).serve() as sim:
        for name, value in env(sim).items():
            monkeypatch.setenv(name, value)
        if base_url is not None:
            monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        sim.webhook_url = f"http://127.0.0.1:{port}/webhooks/openai" if webhooks else None
        hasty: dict[str, Any] = {"poll_after": 0.2, "poll_max": 0.5, "backoff": 0.05}
        hasty |= {"unknown_checks": 2, "poll_after_webhook": 30.0 if webhooks else 0.2}
        tasks = ("openai.respond", "openai.chat", "openai.batch", "openai.image")
        app = AgentFlow(policies=dict.fromkeys(tasks, hasty))

        contents: list[bytes] = []

        @app.task("files.make")
        async def make(_: Any, __: None) -> Result:
            encoded = base64.b64encode(contents[-1]).decode()
            return Result(artifacts=[Artifact(f"data:text/plain;base64,{encoded}")])

        async with whole(app, data, port, webhooks=webhooks, **settings) as here:
            yield World(app, here.url, sim, contents)
