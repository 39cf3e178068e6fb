"""Requests that wait for a job's end. Each test has a server of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.patience import PATIENCE
from support.web import World, world

from agentflow.types import JobId
from agentflow.web import live

LONG = 3600


async def test_waiting_ends_when_the_job_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_EVERY", LONG)  # so that a ring ends it, or nothing
    async with world(tmp_path, max_wait=LONG) as api:
        job = await api.waiting()
        path = f"/v1/jobs/{job['id']}?wait={LONG}"
        waits = [asyncio.create_task(api.http.get(path)) for _ in range(20)]
        await waited_for(api, job["id"], 20)
        said = {"id": job["external_id"], "status": "done", "output": 5}
        await api.deliver(f"acme/{await api.token(job['id'])}", said)
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*waits)
        assert {(a.json()["status"], a.json()["result"]["output"]) for a in answers} == {
            ("succeeded", 5)
        }


async def waited_for(api: World, job: str, times: int) -> None:
    """Until so many requests wait for it."""
    bells = api.app.runtime.bus._bells
    async with asyncio.timeout(PATIENCE):
        while len(bells.get(JobId(job), ())) != times:
            await asyncio.sleep(0.005)


async def test_a_client_that_goes_away_while_waiting_leaves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, max_wait=LONG) as api:
        job = await api.waiting()
        tasks = len(asyncio.all_tasks())
        request = f"GET /v1/jobs/{job['id']}?wait={LONG} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        waits = [asyncio.create_task(api.raw(request)) for _ in range(5)]
        await waited_for(api, job["id"], 5)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        async with asyncio.timeout(PATIENCE):
            while api.app.runtime.bus._bells or len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.02)
