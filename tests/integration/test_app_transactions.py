"""The application's rows and the jobs that belong to them."""

# ruff: noqa: PT012 - what raises is often the end of the block itself

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.fakes import Fake, rows, running, until
from support.shop.models import Note
from tortoise.connection import get_connection
from tortoise.transactions import in_transaction

from agentflow import AgentFlow
from agentflow.errors import Conflict, InvalidInput, UsageError


@pytest.fixture
def limit() -> float:
    """How long a transaction may be held: never the reason why one of these tests fails."""
    return 60.0


@pytest.fixture
async def app(tmp_path: Path, limit: float) -> AsyncIterator[AgentFlow]:
    fake = Fake()
    app = AgentFlow(models=["support.shop.models"], providers=[fake.provider], plugins=[])
    app.fake = fake  # type: ignore[attr-defined]
    async with running(tmp_path, fake, app=app, transaction_limit=limit, synchronous="NORMAL"):
        yield app


async def jobs() -> list[dict[str, Any]]:
    return await rows("SELECT * FROM agentflow_jobs")


async def test_a_rolled_back_transaction_leaves_neither_row_nor_job(app: AgentFlow) -> None:
    with pytest.raises(ZeroDivisionError):
        async with app.transaction() as tx:
            await Note.create(text="a", using_db=tx)
            await app.submit("fake.work", {}, using_db=tx)
            raise ZeroDivisionError
    assert await Note.all().count() == 0
    assert await jobs() == []
    assert await rows("SELECT * FROM agentflow_attempts") == []
    assert await rows("SELECT * FROM agentflow_history") == []
    await app.runtime.writer.settled()
    assert app.fake.calls == {}  # type: ignore[attr-defined]


async def test_the_row_and_its_job_are_seen_together_and_the_call_waits_for_them(
    app: AgentFlow,
) -> None:
    async def outside() -> tuple[int, int]:
        return await Note.all().count(), len(await jobs())

    strangers = asyncio.Queue[asyncio.Event]()

    async def stranger() -> list[tuple[int, int]]:
        seen = []
        for _ in range(2):
            asked = await strangers.get()
            seen.append(await outside())
            asked.set()
        return seen

    looking = asyncio.create_task(stranger())
    async with app.transaction() as tx:
        note = await Note.create(text="a", using_db=tx)
        job = await app.submit("fake.work", {}, entity=f"note:{note.id}", using_db=tx)
        asked = asyncio.Event()
        strangers.put_nowait(asked)
        await asked.wait()
        await asyncio.sleep(0.05)
        assert app.fake.calls == {}, "called before the commit"  # type: ignore[attr-defined]
    strangers.put_nowait(asyncio.Event())
    assert await looking == [(0, 0), (1, 1)]
    assert (await until(app, job.id, "waiting"))["entity"] == f"note:{note.id}"
    assert app.fake.calls == {job.id: [1]}  # type: ignore[attr-defined]


async def test_a_job_of_a_savepoint_is_undone_with_it(app: AgentFlow) -> None:
    async with app.transaction() as tx:
        kept = await app.submit("fake.work", {}, using_db=tx)
        with pytest.raises(ZeroDivisionError):
            async with in_transaction("default") as inner:
                await app.submit("fake.work", {}, using_db=inner)
                raise ZeroDivisionError
    await until(app, kept.id, "waiting")
    assert [row["id"] for row in await jobs()] == [kept.id]


async def test_submit_without_using_db_in_a_transaction_says_what_to_write(app: AgentFlow) -> None:
    async with app.transaction() as tx:
        with pytest.raises(UsageError, match="using_db=tx"):
            await app.submit("fake.work", {})
        with pytest.raises(UsageError, match="using_db=tx"):
            await app.adopt("fake.work", external_id="x")
        await Note.create(text="the transaction goes on", using_db=tx)
    assert await Note.all().count() == 1
    assert await jobs() == []


async def test_waiting_for_a_job_in_a_transaction_is_refused(app: AgentFlow) -> None:
    before = await app.submit("fake.work", {})
    async with app.transaction() as tx:
        job = await app.submit("fake.work", {}, using_db=tx)
        assert (await job.status())["status"] == "queued"
        for handle in (before, job):
            with pytest.raises(UsageError, match="after the `async with`"):
                await handle
            with pytest.raises(UsageError, match="after the `async with`"):
                await handle.result(timeout=1)
            with pytest.raises(UsageError, match="after the `async with`"):
                await handle.cancel()


async def test_using_db_is_an_open_transaction(app: AgentFlow) -> None:
    with pytest.raises(UsageError, match=r"app\.transaction\(\) as tx"):
        await app.submit("fake.work", {}, using_db=get_connection("default"))
    async with app.transaction() as tx:
        pass
    with pytest.raises(UsageError, match="has been committed"):
        await app.submit("fake.work", {}, using_db=tx)
    assert await jobs() == []


@pytest.mark.parametrize("limit", [0.5])
async def test_a_transaction_held_too_long_is_rolled_back_and_others_go_on(app: AgentFlow) -> None:
    async def stranger() -> str:
        await asyncio.sleep(0.1)
        return (await app.submit("fake.work", {})).id

    other = asyncio.create_task(stranger())
    with pytest.raises(UsageError, match="was held longer"):
        async with app.transaction() as tx:
            await Note.create(text="a", using_db=tx)
            await app.submit("fake.work", {}, using_db=tx)
            await asyncio.sleep(0.8)
    assert [row["id"] for row in await jobs()] == [await other]
    assert await Note.all().count() == 0


async def test_a_repeated_key_in_a_transaction_gives_the_same_job(app: AgentFlow) -> None:
    async with app.transaction() as tx:
        first = await app.submit("fake.work", {"n": 9}, idempotency_key="k", using_db=tx)
        again = await app.submit("fake.work", {"n": 9}, idempotency_key="k", using_db=tx)
        with pytest.raises(Conflict, match=first.id):
            await app.submit("fake.work", {"n": 8}, idempotency_key="k", using_db=tx)
    assert again.id == first.id
    assert (await app.submit("fake.work", {"n": 9}, idempotency_key="k")).id == first.id
    assert len(await jobs()) == 1


async def test_what_is_refused_leaves_the_transaction_open(app: AgentFlow) -> None:
    async with app.transaction() as tx:
        with pytest.raises(InvalidInput, match=r"There is no task 'fake\.play'"):
            await app.submit("fake.play", {}, using_db=tx)
        with pytest.raises(InvalidInput, match=r"input\.n"):
            await app.submit("fake.work", {"n": "many"}, using_db=tx)
        await Note.create(text="a", using_db=tx)
    assert await Note.all().count() == 1
    assert await jobs() == []
