"""Design rule 10: with all, half or none of the webhooks delivered, every job ends the same.

`AGENTFLOW_LOST_JOBS=1000` gives the figures of the docs; the suite runs fewer.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agentflow_replicate import provider
from support.serving import Served, replicate_world

from agentflow import Policy

JOBS = int(os.environ.get("AGENTFLOW_LOST_JOBS", "120"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls come soon enough for a test; the distances between them keep growing."""
    task = provider.tasks["replicate.predict"]
    policy: Policy = replace(
        task.policy, poll_after_webhook=3.0, poll_after=1.0, poll_max=10.0, backoff=0.1
    )
    monkeypatch.setattr(task, "policy", policy)


@pytest.mark.timeout(300)
async def test_jobs_end_the_same_however_many_webhooks_are_lost(tmp_path: Path) -> None:
    figures = [await run(tmp_path / str(share), share) for share in (1.0, 0.5, 0.0)]
    for figure in figures:
        print(
            f"\n{figure['share']:.0%} delivered: p50 {figure['p50']:.2f} s, p95"
            f" {figure['p95']:.2f} s from submit to final, {figure['fetches']} fetches,"
            f" {figure['webhooks']} webhooks",
            end="",
        )
    ends = [figure["ends"] for figure in figures]
    assert ends[0] == ends[1] == ends[2]
    assert figures[0]["fetches"] <= JOBS * 0.05, "with every webhook, polls are rare"
    assert figures[2]["webhooks"] == 0


async def run(data: Path, share: float) -> dict[str, Any]:
    async with replicate_world(data) as world:
        world.sim.faults.update({"seed": 7, "drop": 1.0 - share})
        seconds: list[float] = []
        gate = asyncio.Semaphore(100)
        ends = await asyncio.gather(*(one(world, n, seconds, gate) for n in range(JOBS)))
        stats = world.sim.stats
        seconds.sort()
        return {
            "share": share,
            "ends": ends,
            "p50": seconds[len(seconds) // 2],
            "p95": seconds[int(len(seconds) * 0.95)],
            "fetches": stats.counts["fetches"],
            "webhooks": stats.counts["webhooks_delivered"],
        }


async def one(world: Served, n: int, seconds: list[float], gate: asyncio.Semaphore) -> Any:
    """What the job came to, without what differs from run to run."""
    script: dict[str, Any] = {"seconds": 0.5}
    if n % 10 == 7:
        script |= {"outcome": "failed", "error": "the model broke"}
    body = {
        "task": "replicate.predict",
        "input": {"model": "a/b", "input": {"n": n, "simulate": script}},
    }
    async with gate:
        began = time.monotonic()
        made = await world.http.post("/v1/jobs", json=body)
        assert made.status_code == 201, made.text
        job = made.json()
        while job["finished_at"] is None:
            job = (await world.http.get(job["urls"]["self"], params={"wait": 30})).json()
        seconds.append(time.monotonic() - began)
    files = [
        (a["status"], a["sha256"], a["size"]) for a in (job["result"] or {}).get("artifacts", [])
    ]
    error = (job["error"] or {}).get("kind"), (job["error"] or {}).get("message")
    return n, job["status"], job["reason"], job["attempt"], files, error
