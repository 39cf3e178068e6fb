"""Handlers in one batch: what one of them does to the others."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from support.fakes import Fake, running, tell, until
from support.notes import Crowd, crowded, runs, shop, texts
from support.patience import PATIENCE
from support.shop.models import Note

from agentflow import Failed, ProviderError


async def test_a_failing_handler_stops_nobody_in_its_batch(tmp_path: Path) -> None:
    async def behave(event: Any, tx: Any) -> None:
        if event.result.output == "bad":
            raise ZeroDivisionError

    app, fake = crowded(behave)
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        crowd = Crowd(app, fake)
        ids = await crowd.start(6)
        turns = app.runtime.writer.turns
        await crowd.succeed({id: "bad" if i % 3 == 0 else "good" for i, id in enumerate(ids)})
        assert app.runtime.writer.turns == turns + 1, "one batch"
        assert await texts() == sorted(id for i, id in enumerate(ids) if i % 3)
        assert {r["job_id"] for r in await runs()} == {ids[0], ids[3]}
        for id in ids:
            await until(app, id, "succeeded")


async def test_a_slow_handler_is_parked_with_the_place_where_it_hung(tmp_path: Path) -> None:
    async def behave(event: Any, tx: Any) -> None:
        if event.result.output == "slow":
            await asyncio.sleep(60)  # it hangs here

    app, fake = crowded(behave)
    async with running(tmp_path, fake, app=app, handler_timeout=0.2, synchronous="NORMAL"):
        crowd = Crowd(app, fake)
        slow, good = await crowd.start(2)
        began = time.monotonic()
        await crowd.succeed({slow: "slow", good: "good"})
        assert time.monotonic() - began < PATIENCE
        assert await texts() == [good]
        (run,) = await runs()
        assert (run["status"], run["job_id"]) == ("parked", slow)
        assert "took longer than 0.2 seconds" in run["error"]
        assert "await asyncio.sleep(60)  # it hangs here" in run["error"]
        await until(app, slow, "succeeded")


async def test_many_hanging_handlers_hold_up_neither_submits_nor_other_jobs_for_long(
    tmp_path: Path,
) -> None:
    fake = Fake()
    app = shop(providers=[fake.provider])

    @app.on("fake.work", "succeeded")
    async def save(event: Any, tx: Any) -> None:
        if event.result.output == "good":
            await Note.create(text=event.job.id, using_db=tx)
        else:
            await asyncio.sleep(60)

    @app.on("fake.work", "failed")
    async def other(event: Any, tx: Any) -> None:
        await Note.create(text=event.job.id, using_db=tx)

    options: dict[str, Any] = {"handler_timeout": 0.2, "handler_budget": 0.5}
    async with running(tmp_path, fake, app=app, synchronous="NORMAL", **options):
        crowd = Crowd(app, fake)
        *hanging, late = await crowd.start(13)
        telling = asyncio.create_task(crowd.succeed(dict.fromkeys(hanging, "hang")))
        failing = asyncio.create_task(tell(app, late, Failed(ProviderError("no"), attempt=1)))
        await asyncio.sleep(0.05)
        stranger = await app.submit("fake.work", {})
        assert not telling.done(), "twelve hanging handlers would have taken 2.4 seconds"
        await failing
        assert await texts() == [late]
        assert not telling.done(), "a job with another handler does not stand in line"
        await until(app, stranger.id, "waiting")
        await telling
        assert len(await runs()) == 12


async def test_a_handler_is_not_blamed_for_the_time_of_others(tmp_path: Path) -> None:
    async def behave(event: Any, tx: Any) -> None:
        await asyncio.sleep(0.06)

    app, fake = crowded(behave)
    for n in range(3):

        async def another(event: Any, tx: Any, n: int = n) -> None:
            await asyncio.sleep(0.25)

        another.__qualname__ = f"another_{n}"
        app.on("fake.work", "succeeded")(another)

    options: dict[str, Any] = {"handler_timeout": 0.7, "handler_budget": 0.75}
    async with running(tmp_path, fake, app=app, synchronous="NORMAL", **options):
        crowd = Crowd(app, fake)
        ids = await crowd.start(2)
        await crowd.succeed(dict.fromkeys(ids, "fine"))
        assert await texts() == sorted(ids)
        assert await runs() == []


async def test_handlers_that_must_wait_for_the_next_batch_run_once(tmp_path: Path) -> None:
    calls: list[str] = []

    async def behave(event: Any, tx: Any) -> None:
        calls.append(event.job.id)
        if event.result.output == "slow":
            await asyncio.sleep(60)

    app, fake = crowded(behave)
    async with running(tmp_path, fake, app=app, handler_timeout=0.1, synchronous="NORMAL"):
        crowd = Crowd(app, fake)
        ids = await crowd.start(6)
        await crowd.succeed({id: "slow" if i < 3 else "good" for i, id in enumerate(ids)})
        assert sorted(calls) == sorted(ids)
        assert await texts() == sorted(ids[3:])
        for id in ids:
            await until(app, id, "succeeded")
