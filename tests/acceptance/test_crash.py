"""kill -9 under load, again and again; then everything must still be right.

The seed is printed; `AGENTFLOW_CRASH_SEED` repeats a run, `AGENTFLOW_CRASH_KILLS` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from agentflow_replicate.simulator import ReplicateSimulator, env, simulator
from support.crash.books import read_sqlite
from support.crash.checks import counted, wrong
from support.serving import free_port

from agentflow.core.job import FINAL, Status
from agentflow.webhooks.signatures import new_secret

KILLS = int(os.environ.get("AGENTFLOW_CRASH_KILLS", "20"))
SEED = int(os.environ.get("AGENTFLOW_CRASH_SEED", str(random.randrange(10**6))))


class Server:
    """The application as a process that can be killed and started again on its data."""

    def __init__(self, data: Path, sim: ReplicateSimulator, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data, self.log = data, log
        self.env = {
            **os.environ,
            **env(sim),
            "AGENTFLOW_DATA_DIR": str(data),
            "AGENTFLOW_PUBLIC_URL": self.url,
            "AGENTFLOW_ALLOW_DOWNLOADS": f'["{sim.url.removeprefix("http://")}"]',
            "PYTHONPATH": str(Path(__file__).parents[1]),
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


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[tuple[Server, ReplicateSimulator]]:
    async with simulator(new_secret(), "r8_crash").serve() as sim:
        sim.faults.update(
            {
                "seed": SEED, "duplicate": 0.1, "reorder": 0.1, "drop": 0.2, "reset": 0.05,
                "error_after": 0.05, "rate_limit": 0.05, "rate_limit_seconds": 1,
                "webhook_before_response": 0.05,
            }
        )  # fmt: skip
        server = Server(tmp_path / "data", sim, tmp_path / "server.log")
        await server.start()
        yield server, sim
        await server.stop()


async def submit(url: str, accepted: set[str], stop: asyncio.Event, dice: random.Random) -> None:
    """Rows and jobs as fast as a client gets answers; those without an answer may or may not be."""
    async with httpx.AsyncClient(base_url=url, timeout=5) as http:
        number = 0
        while not stop.is_set():
            number += 1
            seconds = dice.choice([0.0, 0.1, 0.3, 1.0])
            input = {"model": "a/b", "input": {"n": number, "simulate": {"seconds": seconds}}}
            try:
                answer = await http.post("/shots", json={"id": number, "input": input})
                if answer.status_code == 200:
                    accepted.add(answer.json()["job"])
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.02)


@pytest.mark.timeout(240)
async def test_nothing_is_lost_or_paid_twice_under_kill_9(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    accepted: set[str] = set()
    async with world(tmp_path) as (server, sim):
        stop = asyncio.Event()
        submitting = asyncio.create_task(submit(server.url, accepted, stop, dice))
        for _ in range(KILLS):
            await asyncio.sleep(dice.uniform(0.05, 1.0))
            await server.kill()
            await server.start()
        stop.set()
        await submitting
        await all_final(server.url)
    data = tmp_path / "data"
    books = read_sqlite(data / "agentflow.db")
    assert wrong(books, accepted, sim, data / "artifacts") == []
    said = Counter((j["status"], j["reason"]) for j in books.jobs)
    print(f"\nseed {SEED}: {KILLS} kills, {len(books.jobs)} jobs, {dict(said)}, {counted(books)}")


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
