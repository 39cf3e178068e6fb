"""kill -9 under load, again and again; then everything must still be right.

The seed is printed; `AGENTFLOW_CRASH_SEED` repeats a run, `AGENTFLOW_CRASH_KILLS` makes it longer.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from agentflow_replicate.simulator import ReplicateSimulator, env, simulator
from support.serving import free_port

from agentflow.core.job import FINAL, fold
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


async def submit(
    url: str, accepted: dict[int, str], stop: asyncio.Event, dice: random.Random
) -> None:
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
                    accepted[number] = answer.json()["job"]
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.02)


@pytest.mark.timeout(240)
async def test_nothing_is_lost_or_paid_twice_under_kill_9(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    accepted: dict[int, str] = {}
    async with world(tmp_path) as (server, sim):
        stop = asyncio.Event()
        submitting = asyncio.create_task(submit(server.url, accepted, stop, dice))
        for _ in range(KILLS):
            await asyncio.sleep(dice.uniform(0.05, 1.0))
            await server.kill()
            await server.start()
        stop.set()
        await submitting
        jobs = await all_final(server.url)
        async with httpx.AsyncClient() as http:
            shots = (await http.get(f"{server.url}/shots")).json()
    check_jobs(jobs, accepted, shots)
    counts = check_database(tmp_path / "data")
    check_provider(sim, tmp_path / "data")
    said = Counter((j["status"], j["reason"]) for j in jobs)
    print(f"\nseed {SEED}: {KILLS} kills, {len(jobs)} jobs, {dict(said)}, {dict(counts)}")


async def all_final(url: str) -> list[dict[str, Any]]:
    """Every job, once nothing is open any more."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as http, asyncio.timeout(120):
        while True:
            jobs: list[dict[str, Any]] = []
            cursor: str | None = None
            while True:
                params = {"limit": "200"} | ({"cursor": cursor} if cursor else {})
                page = (await http.get("/v1/jobs", params=params)).json()
                jobs += page["items"]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            if all(j["status"] in FINAL for j in jobs):
                return jobs
            await asyncio.sleep(0.3)


def check_jobs(
    jobs: list[dict[str, Any]], accepted: dict[int, str], shots: list[dict[str, Any]]
) -> None:
    by_id = {j["id"]: j for j in jobs}
    assert set(accepted.values()) <= by_id.keys(), "an accepted job is lost"
    assert {s["job"] for s in shots} == by_id.keys(), "a row without its job, or the reverse"
    for shot in shots:
        job = by_id[shot["job"]]
        assert shot["status"] == job["status"], (shot, job)
        assert shot["handled"] == 1, shot
        if job["status"] == "succeeded":
            assert shot["file"] == job["result"]["artifacts"][0]["id"]


def check_database(data: Path) -> Counter[str]:
    """Histories fold, files are whole, nothing stored is left unread."""
    db = sqlite3.connect(data / "agentflow.db")
    db.row_factory = sqlite3.Row
    counts: Counter[str] = Counter()
    for job in db.execute("SELECT * FROM agentflow_jobs"):
        history = db.execute(
            "SELECT * FROM agentflow_history WHERE job_id = ? ORDER BY seq", [job["id"]]
        ).fetchall()
        assert [e["seq"] for e in history] == list(range(job["version"]))
        folded = fold([orjson.loads(e["patch"]) for e in history])
        assert folded["status"] == job["status"]
        assert folded["result"] == (orjson.loads(job["result"]) if job["result"] else None)
        finals = [e for e in history if e["disposition"] == "applied" and e["status"] in FINAL]
        assert len(finals) == 1, "a job ended more than once"
        counts["abandoned"] += sum(e["event"] == "abandoned" for e in history)
        counts["found"] += sum(e["reason"] == "found" for e in history)
        grants = Counter(orjson.loads(e["fields"])["attempt"] for e in history
                         if e["event"] == "started" and e["disposition"] == "applied")  # fmt: skip
        assert not grants or max(grants.values()) == 1, "an attempt was granted twice"
        check_files(job, data)
    left = db.execute("SELECT COUNT(*) FROM agentflow_inbox WHERE status IN ('received', 'failed')")
    assert left.fetchone()[0] == 0
    counts["deliveries"] = db.execute("SELECT COUNT(*) FROM agentflow_inbox").fetchone()[0]
    return counts


def check_files(job: sqlite3.Row, data: Path) -> None:
    if job["status"] != "succeeded":
        return
    for artifact in orjson.loads(job["result"])["artifacts"]:
        assert artifact["status"] == "stored", artifact
        body = (data / "artifacts" / artifact["key"]).read_bytes()
        assert len(body) == artifact["size"]
        assert hashlib.sha256(body).hexdigest() == artifact["sha256"]


def check_provider(sim: ReplicateSimulator, data: Path) -> None:
    twice = {token: n for token, n in sim.stats.created.items() if n > 1}
    assert not twice, f"a prediction was created twice for one attempt: {twice}"
    db = sqlite3.connect(data / "agentflow.db")
    unknown = db.execute(
        "SELECT a.token FROM agentflow_jobs j JOIN agentflow_attempts a ON a.job_id = j.id"
        " AND a.number = j.attempt WHERE j.reason = 'failed:outcome_unknown'"
    )
    made = [token for (token,) in unknown if token in sim.stats.created]
    assert not made, f"predictions that exist were not found: {made}"
    stored = {r[0] for r in db.execute("SELECT dedup_key FROM agentflow_inbox")}
    lost = {id for id in sim.stats.acknowledged if f"id:{id}" not in stored}
    assert not lost, f"deliveries answered 2xx are lost: {lost}"
