"""PostgreSQL goes away under a running server, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.patience import PATIENCE
from support.servers import Postgres
from support.web import World, world

from agentflow.errors import StoreUnavailable

DATABASES = ()


@pytest.fixture(scope="module")
def own(servers: None) -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


async def refused(api: World) -> None:
    said = {"task": "acme.draw", "input": {"name": api.name()}}
    answer = await api.http.post("/v1/jobs", json=said)
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"] == "2"
    with pytest.raises(StoreUnavailable):
        await api.app.submit("acme.draw", {"name": api.name()})
    assert (
        await api.deliver("bank", {"id": "late", "status": "done"}, id="late")
    ).status_code == 503
    assert (await api.http.get("/readyz")).status_code == 503
    assert (await api.http.get("/healthz")).status_code == 200


async def late(api: World) -> httpx.Response:
    return await api.deliver("bank", {"id": "late", "status": "done"}, id="late")


async def accepted(api: World) -> None:
    """As soon as the server is back, without a restart of ours."""
    async with asyncio.timeout(PATIENCE):
        while (await api.http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)
    job = await api.waiting()
    await api.deliver(f"acme/{await api.token(job['id'])}", {"status": "done"})
    await api.until(job["id"], "succeeded")


@pytest.mark.parametrize("end", [Postgres.stop, Postgres.kill])
async def test_nobody_is_told_yes_meanwhile_and_all_goes_on_when_it_is_back(
    own: Postgres, tmp_path: Path, end: Callable[[Postgres], None]
) -> None:
    with own.database() as url:
        await outlive(own, url, tmp_path, end)


async def outlive(own: Postgres, url: str, data: Path, end: Callable[[Postgres], None]) -> None:
    async with world(data, database_url=url) as api:
        gate = api.fakes.gates["called"] = asyncio.Event()
        called = await api.submit(input={"name": "called"})
        await api.until(called["id"], "running")
        before = await api.waiting(task="bank.draw", input={"name": "late"})
        for _ in range(2):
            end(own)
            gate.set()  # the call ends while nobody can store its answer
            await refused(api)
            own.start()
            await accepted(api)
        assert (await api.until(called["id"], "waiting"))["external_id"] == "called"
        stored = (await late(api)).json()["status"]
        assert stored == "stored", "what was refused is no duplicate"
        await api.until(before["id"], "succeeded")
        assert api.fakes.calls.count("called") == 1
        assert api.app.runtime.missing() == []
