"""The application of `main.py` in one process, to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
from agentflow_replicate.simulator import ReplicateSimulator, env

from agentflow.core.job import FINAL, Status
from support.servers import free_port

TESTS = Path(__file__).parents[2]


class Server:
    """The application as a process that can be killed and started again on its data."""

    def __init__(
        self,
        data: Path,
        sim: ReplicateSimulator,
        log: Path,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data, self.log = data, log
        self.env = {
            **os.environ,
            **env(sim),
            "AGENTFLOW_DATA_DIR": str(data),
            "AGENTFLOW_PUBLIC_URL": self.url,
            "AGENTFLOW_ALLOW_DOWNLOADS": f'["{sim.url.removeprefix("http://")}"]',
            "PYTHONPATH": str(TESTS),
            **(more or {}),
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "uvicorn", "support.crash.main:asgi",
                "--port", str(self.port), "--log-level", "warning",
                env=self.env, stdout=log, stderr=log,
            )  # fmt: skip
        async with httpx.AsyncClient() as http, asyncio.timeout(30):
            while True:
                assert self.process.returncode is None, self.log.read_text()[-3000:]
                try:
                    if (await http.get(f"{self.url}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(20):
            assert await self.process.wait() in (0, -signal.SIGTERM)


async def all_final(url: str) -> None:
    """Wait until nothing is open any more. A job may turn back while one asks: ask twice."""
    statuses = [status for status in Status if status not in FINAL]
    async with httpx.AsyncClient(base_url=url, timeout=30) as http, asyncio.timeout(120):
        while True:
            asked = [{"status": status, "limit": "1"} for status in (*statuses, *statuses)]
            pages = [(await http.get("/v1/jobs", params=params)).json() for params in asked]
            if not any(page["items"] for page in pages):
                return
            await asyncio.sleep(0.3)
