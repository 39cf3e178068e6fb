"""Handlers after the commit: owed in a row, run at least once, whatever happens in between."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fakes import Fake, rows, running, tell, until
from support.notes import runs
from support.patience import PATIENCE

from agentflow import AgentFlow, JobSpec, Progressed, Result, Succeeded, testing
from agentflow.store.sqlite import current_transaction
from agentflow.testing.application import AppUnderTest
from agentflow.writer import owed as owed_module


async def deliver(app: AgentFlow, t: AppUnderTest, output: Any = None) -> Any:
    job = await app.submit("acme.draw", {})
    await t.deliver(job, Succeeded(Result(output=output)))
    return job


async def finished(app: AgentFlow, count: int = 1) -> None:
    """Wait until so many runs are done."""
    async with asyncio.timeout(PATIENCE):
        while len([r for r in await runs() if r["status"] == "done"]) < count:
            await asyncio.sleep(0.005)


async def test_it_runs_after_the_commit_and_outside_of_any_transaction() -> None:
    app = AgentFlow()
    told = []

    @app.on("acme.draw", "succeeded", after_commit=True)
    async def later(event: Any) -> None:
        status = (await app.job(event.job.id).status())["status"]
        result = await app.job(event.job.id)
        await app.submit("acme.next", {})
        told.append((status, result.output, event.result.output, current_transaction()))

    async with testing.app(app) as t:
        await deliver(app, t, 7)
        assert told == [("succeeded", 7, 7, None)]
        assert [j["status"] for j in await t.jobs()] == ["succeeded", "waiting"]
        (run,) = await runs()
        assert (run["status"], run["tries"], run["wake_at"]) == ("done", 1, None)


async def test_it_is_owed_by_the_same_transaction_that_ends_the_job() -> None:
    app = AgentFlow()

    @app.on("acme.draw", "succeeded", after_commit=True)
    async def later(event: Any) -> None:
        raise ZeroDivisionError

    async with testing.app(app, handlers_may_fail=True) as t:
        job = await app.submit("acme.draw", {})
        await t.settle()
        delivering = asyncio.create_task(t.deliver(job, Succeeded()))
        seen = set()
        while not delivering.done():
            (both,) = await rows(
                "SELECT (SELECT COUNT(*) FROM agentflow_handler_runs) AS runs, status"
                " FROM agentflow_jobs"
            )
            seen.add((both["runs"], both["status"]))
            await asyncio.sleep(0)
        await delivering
        assert seen <= {(0, "waiting"), (1, "succeeded")}
        assert len(await runs()) == 1


async def test_a_failing_one_is_tried_again_later_and_later_until_it_works() -> None:
    app = AgentFlow()
    tries = 0

    @app.on("acme.draw", "succeeded", after_commit=True)
    async def later(event: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ZeroDivisionError(f"try {tries}")
        return JobSpec("acme.next")

    async with testing.app(app, handlers_may_fail=True) as t:
        await deliver(app, t)
        assert tries == 1
        (run,) = await runs()
        assert (run["status"], run["tries"]) == ("pending", 1)
        assert "try 1" in run["error"]
        for seconds, expected in ((3.5, 1), (1, 2), (7, 2), (1.5, 3), (14.5, 3), (1.5, 4)):
            await t.advance(seconds)
            assert tries == expected, "after 4, 8 and 16 seconds"
        await t.advance(600)
        assert tries == 4
        (run,) = await runs()
        assert (run["status"], run["tries"], run["error"]) == ("done", 4, None)
        assert [j["task"] for j in await t.jobs()] == ["acme.draw", "acme.next"]


async def test_after_ten_tries_it_is_parked_and_can_be_asked_for_again() -> None:
    app = AgentFlow()
    tries = 0
    repaired = False

    @app.on("acme.draw", "succeeded", after_commit=True)
    async def later(event: Any) -> None:
        nonlocal tries
        tries += 1
        if not repaired:
            raise ZeroDivisionError

    transport = httpx.ASGITransport(app.asgi)
    async with (
        testing.app(app, handlers_may_fail=True) as t,
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        await deliver(app, t)
        await t.advance(3600)
        assert tries == 10
        (run,) = await runs()
        assert (run["status"], run["tries"], run["wake_at"]) == ("parked", 10, None)
        assert "ZeroDivisionError" in run["error"]
        repaired = True
        await http.post(f"/v1/handler-runs/{run['id']}/retry")
        await t.settle()
        assert tries == 11
        assert [r["status"] for r in await runs()] == ["done"]


@pytest.mark.parametrize("end", ["cancels", "exits"])
async def test_whatever_one_raises_the_others_go_on(end: str) -> None:
    app = AgentFlow()
    told = []

    @app.on("acme.draw", "succeeded", after_commit=True)
    async def later(event: Any) -> Any:
        match event.result.output:
            case "cancels":
                raise asyncio.CancelledError
            case "exits":
                sys.exit(1)
            case "garbage":
                return 5
            case "unknown":
                return JobSpec("no task")
            case good:
                return told.append(good)

    async with testing.app(app, handlers_may_fail=True) as t:
        for output in (end, "garbage", "unknown", "good"):
            await deliver(app, t, output)
        assert told == ["good"]
        found = await runs()
        assert [r["status"] for r in found] == ["pending", "pending", "pending", "done"]
        assert all(r["error"] for r in found[:3])
        assert app.runtime.missing() == []


async def test_a_hanging_one_holds_up_neither_others_nor_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owed_module, "TIME_LIMIT", 1.0)
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    told = []

    @app.on("fake.work", "succeeded", after_commit=True)
    async def later(event: Any) -> None:
        if event.result.output == "hang":
            await asyncio.sleep(60)  # it hangs here
        told.append(event.job.id)

    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        jobs = [await app.submit("fake.work", {}) for _ in range(4)]
        for job in jobs:
            await until(app, job.id, "waiting")
        for job, output in zip(jobs, ("hang", "hang", "good", "good"), strict=True):
            await tell(app, job.id, Succeeded(Result(output=output), attempt=1))
        await finished(app, 2)
        assert sorted(told) == sorted(job.id for job in jobs[2:])
        assert not any(r["error"] for r in await runs()), "the others hang meanwhile"
        turns = app.runtime.writer.turns
        await asyncio.sleep(0.2)
        assert app.runtime.writer.turns - turns < 5, "the writer rests meanwhile"
        async with asyncio.timeout(PATIENCE):
            while len(hung := [r for r in await runs() if r["error"]]) < 2:
                await asyncio.sleep(0.01)
        assert hung[0]["status"] == "pending"
        assert "took longer than 1 seconds" in hung[0]["error"]
        assert "# it hangs here" in hung[0]["error"]


async def test_what_one_job_tells_comes_one_by_one_and_in_order() -> None:
    app = AgentFlow()
    told: list[Any] = []

    @app.on("acme.draw", "progress", after_commit=True)
    async def progress(event: Any) -> None:
        told.append(event.progress.fraction)
        await asyncio.sleep(0.02)
        told.append(event.progress.fraction)

    @app.on("acme.draw", "succeeded", after_commit=True)
    async def end(event: Any) -> None:
        told.append("end")

    async with testing.app(app) as t:
        job = await app.submit("acme.draw", {})
        await t.settle()
        await asyncio.gather(
            t.deliver(job, Progressed(fraction=0.1)),
            t.deliver(job, Progressed(fraction=0.2)),
        )
        await t.deliver(job, Succeeded())
    assert told == [0.1, 0.1, 0.2, 0.2, "end"]


async def test_what_is_owed_survives_a_restart(tmp_path: Path) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    began: list[str] = []
    told: list[str] = []
    gate = asyncio.Event()

    @app.on("fake.work", "succeeded", after_commit=True)
    async def later(event: Any) -> Any:
        began.append(event.result.output)
        await gate.wait()
        told.append(event.result.output)
        return JobSpec("fake.work", {})

    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        await tell(app, job.id, Succeeded(Result(output="owed"), attempt=1))
        async with asyncio.timeout(PATIENCE):
            while not began:
                await asyncio.sleep(0.005)
    assert (began, told) == (["owed"], [])
    gate.set()
    async with running(tmp_path, Fake(), app=app, synchronous="NORMAL"):
        await finished(app)
        assert (began, told) == (["owed", "owed"], ["owed"])
        assert len(await rows("SELECT id FROM agentflow_jobs")) == 2
    async with running(tmp_path, Fake(), app=app, synchronous="NORMAL"):
        await asyncio.sleep(0.05)
    assert told == ["owed"]


async def test_one_whose_code_is_gone_is_kept_and_says_so(tmp_path: Path) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])

    @app.on("fake.work", "succeeded", after_commit=True)
    async def later(event: Any) -> None:
        raise ZeroDivisionError

    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        await tell(app, job.id, Succeeded(attempt=1))
        async with asyncio.timeout(PATIENCE):
            while not (await runs())[0]["error"]:
                await asyncio.sleep(0.005)
    fake = Fake()
    other = AgentFlow(providers=[fake.provider], plugins=[])
    async with running(tmp_path, fake, app=other, synchronous="NORMAL"):
        other.runtime.clock.advance(60)
        other.runtime.writer.owed.bell.set()
        async with asyncio.timeout(PATIENCE):
            while (await runs())[0]["tries"] < 2:
                await asyncio.sleep(0.005)
        (run,) = await runs()
        assert run["status"] == "pending"
        assert "has no handler" in run["error"]
