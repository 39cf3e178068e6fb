"""An application whose services are declared by settings alone, on real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agentflow_http.simulator import env

from agentflow import AgentFlow, Settings
from agentflow.app import standalone
from agentflow.store import queries
from support.fakes import rows
from support.servers import free_port
from support.serving import http_server

HASTY = {"backoff": 0.05, "unknown_checks": 1}


@dataclass
class Declared:
    app: AgentFlow
    url: str

    async def ended(self, task: str, input: Any, **options: Any) -> dict[str, Any]:
        """The job once it is final."""
        job = await self.app.submit(task, input, **options)
        async with asyncio.timeout(20):
            while True:
                view = await queries.get_job("default", job.id)
                if view["finished_at"]:
                    return view
                await asyncio.sleep(0.01)

    async def quiet(self) -> None:
        """Until everything that came was read."""
        while await rows("SELECT id FROM agentflow_inbox WHERE status = 'received'"):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def declared(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    *sims: Any,
    webhooks: bool = True,
    hasty: tuple[str, ...] = (),
    port: int | None = None,
    **policy: Any,
) -> AsyncIterator[Declared]:
    """`hasty` names the tasks whose policies are, and have these fields."""
    if sims:
        monkeypatch.setenv("AGENTFLOW_HTTP_SERVICES", env(*sims)["AGENTFLOW_HTTP_SERVICES"])
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    app = AgentFlow(plugins=["http"], policies=dict.fromkeys(hasty, HASTY | policy))
    app._settings = Settings(
        data_dir=data, port=port, public_url=url if webhooks else None, grace=0.2
    )
    async with http_server(standalone(app), port):
        yield Declared(app, url)
