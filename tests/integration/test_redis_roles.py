"""The roles on real PostgreSQL and Redis: how much of the waiting work lies in Redis, and when."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import BaseModel, SecretStr
from support.fakes import rows
from support.patience import PATIENCE
from support.servers import RedisServer
from tortoise.transactions import in_transaction

from agentflow import (
    Accepted,
    AgentFlow,
    Policy,
    Provider,
    Result,
    Settings,
    Succeeded,
    runtime,
)
from agentflow.store.sql import Sql
from agentflow.transport import redis as redis_transport
from agentflow.transport.redis_link import LEVELS, Link, calls, connect

DATABASES = ("postgres",)

CROWD = 600
AT_MOST = 150

COLUMNS = """
    SELECT column_name FROM information_schema.columns WHERE table_name = $1
    AND is_identity = 'NO' AND (column_default IS NULL OR column_default NOT LIKE 'next%')
"""


class Work(BaseModel):
    n: int = 0


class Site:
    """Processes of one installation: `done` are the jobs whose call was made. Work of a negative
    number goes on at the provider, which has to be told the number again."""

    def __init__(self, database: str, redis_url: str, folder: Path) -> None:
        self._settings = {
            "database_url": SecretStr(database),
            "redis_url": SecretStr(redis_url),
            "grace": 0.2,
        }
        self._folders = (folder / str(n) for n in itertools.count())
        self.done: list[str] = []

    @asynccontextmanager
    async def role(self, mode: Any, **options: Any) -> AsyncIterator[AgentFlow]:
        provider = Provider("fake", webhooks="none")

        async def work(call: Any, input: Work) -> Result | Accepted:
            self.done.append(call.job_id)
            return Accepted("x") if input.n < 0 else Result(output=input.n)

        async def fetch(call: Any, external_id: str, input: Work) -> Succeeded:
            return Succeeded(Result(output=[external_id, input.n]))

        provider.task("work", input=Work, policy=Policy(poll_after=0.05))(work).fetch(fetch)
        app = AgentFlow(providers=[provider], plugins=[])
        app._settings = Settings(
            mode=mode, data_dir=next(self._folders), **self._settings, **options
        )
        async with app.lifespan():
            yield app


@pytest.fixture
def site(database: str, redis_url: str, tmp_path: Path) -> Site:
    return Site(database, redis_url, tmp_path)


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Link]:
    link = connect(redis_url)
    yield link
    await link.aclose()


async def crowd(app: AgentFlow, number: int) -> None:
    """One job and so many more like it, all due for their first ring."""
    first = await app.submit("fake.work", {"n": 1})
    id = "'job_' || md5('j' || n)"
    async with in_transaction("default") as tx:
        sql = Sql(tx)
        due = {"id": id, "check_at": "created_at", "wake_at": "created_at"}
        await copy(sql, "jobs", f"id = '{first.id}'", number, due)
        others = {"job_id": id, "token": "md5('t' || n)"}
        await copy(sql, "attempts", f"job_id = '{first.id}'", number, others)
        await copy(sql, "history", f"job_id = '{first.id}' AND seq = 0", number, others)
    app.runtime.ring()


async def copy(sql: Sql, name: str, which: str, number: int, changed: dict[str, str]) -> None:
    """Rows like the one that there is, with other values in some columns."""
    table = f"agentflow_{name}"
    found = await sql.rows(COLUMNS, [table])
    columns = [row["column_name"] for row in found]
    names = ", ".join(f'"{c}"' for c in columns)
    values = ", ".join(changed.get(c, f'"{c}"') for c in columns)
    await sql.rows(
        f"INSERT INTO {table} ({names}) SELECT {values} FROM {table},"
        f" generate_series(1, {number}) AS n WHERE {which}"
    )


async def waiting(redis: Link) -> int:
    return sum([await redis.xlen(calls("fake", p)) for p in (1, 0, -1)])


async def added(redis: Link) -> int:
    """Messages ever put into the streams of calls."""
    total = 0
    for p in range(1, 1 - len(LEVELS), -1):
        if await redis.exists(calls("fake", p)):
            total += (await redis.xinfo_stream(calls("fake", p)))["entries-added"]
    return total


async def ended(status: str = "succeeded") -> int:
    found = await rows("SELECT count(*) AS n FROM agentflow_jobs WHERE status = $1", status)
    return int(found[0]["n"])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_transport, "MAX_UNCLAIMED", AT_MOST)
    monkeypatch.setattr(redis_transport, "MEASURE_EVERY", 0.05)


@pytest.mark.usefixtures("narrow")
async def test_a_crowd_waits_in_the_database_and_not_in_redis(site: Site, redis: Link) -> None:
    async with site.role("writer") as writer:
        await crowd(writer, CROWD)
        seen = []
        for _ in range(60):
            await asyncio.sleep(0.02)
            seen.append(await waiting(redis))
        assert max(seen) <= AT_MOST
        assert seen[-1] == AT_MOST


@pytest.mark.usefixtures("narrow")
async def test_every_job_of_a_crowd_is_dispatched_about_once(site: Site, redis: Link) -> None:
    async with site.role("writer") as writer:
        await crowd(writer, CROWD)
        most = 0
        async with site.role("worker", concurrency=32), asyncio.timeout(30):
            while await ended() < CROWD + 1:
                most = max(most, await waiting(redis))
                await asyncio.sleep(0.02)
        assert most <= AT_MOST
        assert CROWD < await added(redis) <= 1.02 * CROWD
        assert len(site.done) == len(set(site.done)) == CROWD + 1


async def test_a_worker_without_a_database_asks_with_the_jobs_input(site: Site) -> None:
    async with site.role("writer") as writer, site.role("worker"):
        job = await writer.submit("fake.work", {"n": -7})
        assert (await job.result(timeout=PATIENCE)).output == ["x", -7]


async def test_work_that_redis_lost_is_rung_for_again(
    site: Site, redis: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "CATCH_UP", 0.5)
    async with site.role("writer") as writer:
        await crowd(writer, 20)
        async with asyncio.timeout(PATIENCE):
            while await waiting(redis) < 21:
                await asyncio.sleep(0.02)
        await redis.flushall()
        async with site.role("worker"), asyncio.timeout(20):
            while await ended() < 21:
                await asyncio.sleep(0.05)
    assert len(site.done) == len(set(site.done)) == 21


async def test_a_password_in_the_url_is_used(database: str, tmp_path: Path) -> None:
    with RedisServer(password="opensesame") as server:
        site = Site(database, server.url(), tmp_path)
        async with site.role("writer") as writer, site.role("worker"):
            assert writer.runtime.missing() == []
            job = await writer.submit("fake.work", {"n": 7})
            result = await job.result(timeout=PATIENCE)
        assert result.output == 7


async def test_a_wrong_password_is_said_and_is_no_crash(database: str, tmp_path: Path) -> None:
    with RedisServer(password="opensesame") as server:
        site = Site(database, server.url().replace("opensesame", "wrong"), tmp_path)
        async with site.role("writer") as writer:
            assert "Redis" in " ".join(writer.runtime.missing())
