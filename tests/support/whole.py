"""An application on real HTTP, and its jobs from their beginning to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from agentflow import AgentFlow, Settings
from agentflow.app import standalone
from agentflow.store import queries
from support.fakes import rows
from support.patience import PATIENCE
from support.serving import http_server


@dataclass
class Whole:
    """`patience` is how many seconds a job may take to its end."""

    patience: ClassVar[float] = PATIENCE
    app: AgentFlow
    url: str

    async def ends(self, task: str, input: Any, **options: Any) -> Any:
        """The job at its end."""
        return await self.end_of((await self.app.submit(task, input, **options)).id)

    async def end_of(self, id: str) -> Any:
        async with asyncio.timeout(self.patience):
            while True:
                view = await queries.get_job("default", id)
                if view["finished_at"]:
                    return view
                await asyncio.sleep(0.01)

    async def quiet(self) -> None:
        """Until everything that came was read."""
        while await rows("SELECT id FROM agentflow_inbox WHERE status = 'received'"):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def whole(
    app: AgentFlow, data: Path, port: int, *, webhooks: bool = True, **settings: Any
) -> AsyncIterator[Whole]:
    """The application served on this port; its public URL is there, if `webhooks` are to come."""
    url = f"http://127.0.0.1:{port}"
    settings = {"grace": 0.2, "synchronous": "NORMAL", **settings}
    app._settings = Settings(
        data_dir=data, port=port, public_url=url if webhooks else None, **settings
    )
    async with http_server(standalone(app), port):
        yield Whole(app, url)
