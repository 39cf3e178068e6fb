"""kill -9 under load, again and again; then everything must still be right.

The seed is printed; `AGENTFLOW_CRASH_SEED` repeats a run, `AGENTFLOW_CRASH_KILLS` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from agentflow_replicate.simulator import ReplicateSimulator, simulator
from support.crash.books import read_sqlite
from support.crash.checks import counted, wrong
from support.crash.server import Server, all_final

from agentflow.webhooks.signatures import new_secret

KILLS = int(os.environ.get("AGENTFLOW_CRASH_KILLS", "20"))
SEED = int(os.environ.get("AGENTFLOW_CRASH_SEED", str(random.randrange(10**6))))


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
