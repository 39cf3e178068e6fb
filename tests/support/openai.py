"""agentflow and a simulated OpenAI, joined over loopback HTTP."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from agentflow_openai.simulator import OpenAISimulator, env, simulator

from agentflow import AgentFlow, Artifact, Result, Settings
from agentflow.app import standalone
from agentflow.store import queries
from agentflow.webhooks.signatures import new_secret
from support.servers import free_port
from support.serving import http_server

KEY = "sk-test-very-secret-key"
HELLO = {"model": "gpt-x", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class World:
    app: AgentFlow
    sim: OpenAISimulator
    url: str
    made: list[bytes]

    async def ends(self, task: str, input: Any, **options: Any) -> Any:
        """The job at its end."""
        job = await self.app.submit(task, input, **options)
        return await self.end_of(job.id)

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

    async def end_of(self, id: str) -> Any:
        async with asyncio.timeout(60):
            while True:
                view = await queries.get_job("default", id)
                if view["finished_at"]:
                    return view
                await asyncio.sleep(0.01)


@asynccontextmanager
async def world(
    data: Path, monkeypatch: pytest.MonkeyPatch, *, webhooks: bool = True, **settings: Any
) -> AsyncIterator[World]:
    port = free_port()
    async with simulator(new_secret(), KEY).serve() as sim:
        for name, value in env(sim).items():
            monkeypatch.setenv(name, value)
        url = f"http://127.0.0.1:{port}"
        sim.webhook_url = f"{url}/webhooks/openai" if webhooks else None
        hasty: dict[str, Any] = {"poll_after": 0.2, "poll_max": 0.5, "backoff": 0.05}
        hasty |= {"unknown_checks": 2, "poll_after_webhook": 30.0 if webhooks else 0.2}
        tasks = ("openai.respond", "openai.chat", "openai.batch")
        app = AgentFlow(policies=dict.fromkeys(tasks, hasty))

        contents: list[bytes] = []

        @app.task("files.make")
        async def make(_: Any, __: None) -> Result:
            encoded = base64.b64encode(contents[-1]).decode()
            return Result(artifacts=[Artifact(f"data:text/plain;base64,{encoded}")])

        app._settings = Settings(
            data_dir=data, port=port, public_url=url if webhooks else None, grace=0.2, **settings
        )
        async with http_server(standalone(app), port):
            yield World(app, sim, url, contents)
