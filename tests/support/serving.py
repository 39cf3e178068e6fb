"""An application on real HTTP, with the Replicate simulator beside it, all in this event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from agentflow_replicate.simulator import ReplicateSimulator, env, simulator

from agentflow import AgentFlow, Settings
from agentflow.app import standalone
from agentflow.testing.serving import served
from agentflow.testing.simulated import environment
from agentflow.webhooks.signatures import new_secret
from support.servers import free_port


@dataclass
class Served:
    url: str
    http: httpx.AsyncClient
    app: AgentFlow
    sim: ReplicateSimulator


@asynccontextmanager
async def http_server(asgi: Any, port: int) -> AsyncIterator[None]:
    config = uvicorn.Config(asgi, port=port, log_config=None, access_log=False, lifespan="on")
    async with served(config, signals=True):
        yield


@asynccontextmanager
async def replicate_world(
    data: Path, *, app: AgentFlow | None = None, webhooks: bool = True, **options: Any
) -> AsyncIterator[Served]:
    """agentflow on a free port, its Replicate replaced by the simulator."""
    port = free_port()
    async with simulator(new_secret(), "r8_test").serve() as sim:
        with environment(env(sim)):
            settings = Settings(
                data_dir=data,
                port=port,
                public_url=f"http://127.0.0.1:{port}" if webhooks else None,
                allow_downloads=frozenset({sim.url.removeprefix("http://")}),
                **{"synchronous": "NORMAL", **options},
            )
            app = app or AgentFlow()
            app._settings = settings
            async with (
                http_server(standalone(app), port),
                httpx.AsyncClient(base_url=settings.url, timeout=60) as http,
            ):
                yield Served(settings.url, http, app, sim)
