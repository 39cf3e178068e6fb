"""The feed while several transactions write at once, on PostgreSQL: nothing late, nothing twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import orjson
import pytest
import pytest_asyncio
from support.patience import PATIENCE
from support.servers import Postgres

from agentflow import Settings
from agentflow.store import feed
from agentflow.store.database import Database, Models
from agentflow.store.feed import START, Position, stretch
from agentflow.transport.bus import Bus
from agentflow.types import DEFAULT_TENANT
from agentflow.web import feed as web_feed

DATABASES = ("postgres",)

INSERT = """
    INSERT INTO agentflow_history (job_id, seq, tenant, envelope_id, source, event, fields,
        disposition, reason, status, patch, timers, told_at, decided_at, random, machine)
    VALUES ($1, 0, $2, 'submitted', 'api', 'submitted', '{}', 'applied', 'submitted', 'queued',
        '{}', '{}', now(), now(), '', 1)
"""


class Writer:
    """One session; every entry it writes is known by its job."""

    def __init__(self, session: Any) -> None:
        self.session = session

    async def begin(self) -> None:
        await self.session.execute("BEGIN")

    async def write(self, job: str, tenant: str = DEFAULT_TENANT) -> None:
        await self.session.execute(INSERT, job, tenant)

    async def end(self, how: str = "COMMIT") -> None:
        await self.session.execute(how)


@pytest_asyncio.fixture
async def writers(database: str, tmp_path: Path) -> AsyncIterator[list[Writer]]:
    """Four sessions on a database that the feed reads."""
    store = Database(Settings(data_dir=tmp_path), Models())
    await store.open()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        sessions = [await asyncpg.connect(database) for _ in range(4)]
        for session in sessions:
            stack.push_async_callback(session.close)
        yield [Writer(session) for session in sessions]


async def given(after: Position = START) -> list[str]:
    found = await stretch(DEFAULT_TENANT, after, 1000)
    return [entry["job_id"] for _, entry in found.entries]


async def test_what_is_committed_waits_for_the_older_that_is_not(writers: list[Writer]) -> None:
    older, newer, *_ = writers
    await older.begin()
    await older.write("a")
    await newer.write("b")
    found = await stretch(DEFAULT_TENANT, START, 10)
    assert (found.entries, found.held) == ([], True)
    assert await feed.end(DEFAULT_TENANT) == START
    await older.end()
    assert await given() == ["a", "b"]
    assert not (await stretch(DEFAULT_TENANT, START, 10)).held


async def test_what_was_rolled_back_keeps_nobody_waiting(writers: list[Writer]) -> None:
    older, newer, *_ = writers
    await older.begin()
    await older.write("a")
    await newer.write("b")
    await older.end("ROLLBACK")
    assert await given() == ["b"]


async def test_a_transaction_counts_from_its_first_write(writers: list[Writer]) -> None:
    older, newer, *_ = writers
    await older.begin()
    await older.session.fetch("SELECT COUNT(*) FROM agentflow_history")
    await newer.write("b")
    assert await given() == ["b"], "who has only read holds nobody"
    await older.write("a")
    await older.end()
    assert await given() == ["b", "a"]


async def test_another_database_of_the_server_holds_nobody(
    writers: list[Writer], postgres: Postgres
) -> None:
    one, *_ = writers
    with postgres.database() as url:
        elsewhere = await asyncpg.connect(url)
        try:
            await elsewhere.execute("BEGIN; CREATE TABLE restored (id int)")
            await one.write("a")
            found = await stretch(DEFAULT_TENANT, START, 10)
            assert ([entry["job_id"] for _, entry in found.entries], found.held) == (["a"], False)
            assert await feed.end(DEFAULT_TENANT) == found.end(START)
        finally:
            await elsewhere.close()


async def test_a_login_with_few_rights_sees_the_same(
    writers: list[Writer], postgres: Postgres
) -> None:
    """PostgreSQL shows it of others' sessions only their database: that is enough."""
    older, newer, reader, _ = writers
    given_now = f"SELECT count(*) FROM agentflow_history WHERE xact < ({feed._OLDEST})"
    with postgres.database() as url:
        elsewhere = await asyncpg.connect(url)
        await reader.session.execute(
            "CREATE ROLE onlooker; GRANT SELECT ON agentflow_history TO onlooker; SET ROLE onlooker"
        )
        try:
            await elsewhere.execute("BEGIN; CREATE TABLE restored (id int)")
            await older.begin()
            await older.write("a")
            await newer.write("b")
            assert await reader.session.fetchval(given_now) == 0
            await older.end()
            assert await reader.session.fetchval(given_now) == 2
        finally:
            await elsewhere.close()
            await reader.session.execute("RESET ROLE; DROP OWNED BY onlooker; DROP ROLE onlooker")


async def test_entries_of_one_transaction_stay_together(writers: list[Writer]) -> None:
    one, two, *_ = writers
    await one.begin()
    await one.write("a1")
    await two.begin()
    await two.write("b1")
    await one.session.execute("SAVEPOINT s")
    await one.write("a2")
    await one.session.execute("RELEASE s")
    await two.write("b2")
    await two.end()
    assert await given() == []
    await one.end()
    assert await given() == ["a1", "a2", "b1", "b2"]


async def test_the_end_is_where_the_next_reading_begins(writers: list[Writer]) -> None:
    one, two, three, _ = writers
    await one.write("before")
    await two.begin()
    await two.write("open")
    await three.write("held")
    end = await feed.end(DEFAULT_TENANT)
    await two.end()
    assert await given(end) == ["open", "held"]


async def test_tenants_do_not_see_each_other(writers: list[Writer]) -> None:
    await writers[0].write("ours")
    await writers[1].write("theirs", "other")
    assert await given() == ["ours"]
    assert await feed.end(DEFAULT_TENANT) < await feed.end("other")


@pytest.mark.parametrize("seed", range(3))
async def test_a_reader_among_writers_misses_nothing_and_repeats_nothing(
    writers: list[Writer], seed: int
) -> None:
    chance = random.Random(seed)
    committed: list[str] = []
    found: list[str] = []

    async def write(number: int, writer: Writer) -> None:
        for turn in range(25):
            jobs = [f"{number}-{turn}-{i}" for i in range(chance.randint(1, 4))]
            await writer.begin()
            for job in jobs:
                await writer.write(job)
                await asyncio.sleep(chance.choice([0, 0, 0.001, 0.004]))
            kept = chance.random() < 0.8
            await writer.end("COMMIT" if kept else "ROLLBACK")
            committed.extend(jobs if kept else [])

    async def read() -> None:
        after = START
        while not (writing.done() and sorted(found) == sorted(committed)):
            part = await stretch(DEFAULT_TENANT, after, chance.randint(1, 7))
            positions = [at for at, _ in part.entries]
            assert positions == sorted({after, *positions})[1:], "forward, without a repeat"
            found.extend(entry["job_id"] for _, entry in part.entries)
            after = part.end(after)
            await asyncio.sleep(0)

    writing = asyncio.gather(*(write(n, w) for n, w in enumerate(writers)))
    async with asyncio.timeout(30):
        await asyncio.gather(writing, read())
    assert found == await given()


async def test_a_live_feed_looks_again_for_what_is_held(
    writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_feed, "LOOK_EVERY", 60)
    older, newer, *_ = writers
    bus = Bus()
    await older.begin()
    await older.write("a")
    live = web_feed._events(bus, DEFAULT_TENANT, START, anyio.Event(), _always)
    async with aclosing(live) as events:
        assert (await anext(events)).id == "0.0"
        coming = asyncio.ensure_future(_job(events))
        await newer.write("b")
        await asyncio.sleep(0.02)
        bus.told([])
        await asyncio.sleep(0.1)
        assert not coming.done()
        await older.end()  # by another process: nobody rings
        async with asyncio.timeout(PATIENCE):
            assert [await coming, await _job(events)] == ["a", "b"]


async def _always() -> bool:
    return True


async def _job(events: Any) -> str:
    entry: dict[str, str] = orjson.loads((await anext(events)).data)
    return entry["job_id"]
