"""The tenants of a provider take turns, however many jobs one of them has queued."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tortoise.connection import get_connection

from agentflow import Provider, Settings
from agentflow.core.submission import JobSpec, NewJob, prepare
from agentflow.store.database import Database, Models
from agentflow.store.inserts import insert_jobs
from agentflow.store.sql import Sql
from agentflow.types import utcnow
from agentflow.writer.turns import AT_ONCE, Turns, dealt


def task(provider: str) -> Any:
    async def work(call: Any, input: Any) -> None: ...

    return Provider(provider).task("work")(work)


FAKE, OTHER = task("fake"), task("other")
NOW = utcnow()


def new(tenant: str, priority: int = 0, task: Any = FAKE) -> NewJob:
    spec = JobSpec(task.name, {}, priority=priority)
    return prepare(spec, task, now=NOW, tenant=tenant)


@pytest_asyncio.fixture
async def sql(tmp_path: Path) -> AsyncIterator[Sql]:
    url = os.environ.get("AGENTFLOW_DATABASE_URL")
    store = Database(Settings(data_dir=tmp_path, database_url=url), Models())  # type: ignore[arg-type]
    await store.open(migrate=url is None)
    try:
        yield Sql(get_connection("default"))
    finally:
        await store.close()


async def stored(sql: Sql, *jobs: NewJob) -> dict[str, str]:
    """Each job's tenant."""
    await insert_jobs(sql, jobs)
    return {each.job.id: each.job.tenant for each in jobs}


async def ready(
    sql: Sql, most: int, turns: Turns | None = None, paused: tuple[str, ...] = ()
) -> list[str]:
    later = NOW + timedelta(seconds=1)
    return await (turns or Turns()).ready(sql, later, "fake", most, paused)


async def test_a_tenant_with_a_long_backlog_does_not_keep_the_others_waiting(sql: Sql) -> None:
    tenant = await stored(sql, *(new("big") for _ in range(300)))
    tenant |= await stored(sql, *(new("small") for _ in range(3)), new("tiny"))
    served = Counter(tenant[id] for id in await ready(sql, 20))
    assert served["small"] == 3
    assert served["tiny"] == 1
    assert served["big"] >= 10
    assert served.total() <= 20


async def test_one_tenant_alone_has_all_the_room(sql: Sql) -> None:
    jobs = [new("big") for _ in range(50)]
    await stored(sql, *jobs, *(new("elsewhere", task=OTHER) for _ in range(50)))
    assert await ready(sql, 20) == sorted(each.job.id for each in jobs)[:20]


async def test_jobs_of_a_tenant_go_by_priority_and_do_not_outrun_another_tenant(sql: Sql) -> None:
    low, high, other = [new("a"), new("a")], [new("a", 9) for _ in range(4)], new("b", -9)
    await stored(sql, *low, *high, other)
    found = await ready(sql, 20)
    mine = [id for id in found if id != other.job.id]
    assert mine[:4] == sorted(each.job.id for each in high)
    assert other.job.id in found[:2]


async def test_of_very_many_tenants_each_has_a_turn(sql: Sql) -> None:
    tenant = await stored(sql, *(new(f"t{n:03}") for n in range(3 * AT_ONCE) for _ in range(2)))
    turns, seen = Turns(), Counter[str]()
    for _ in range(12):
        seen.update(tenant[id] for id in await ready(sql, AT_ONCE // 2, turns))
    assert len(seen) == 3 * AT_ONCE
    assert max(seen.values()) <= 4


async def test_a_paused_task_takes_no_turn(sql: Sql) -> None:
    await stored(sql, new("a"), new("b"))
    assert await ready(sql, 20, paused=("fake.work",)) == []


async def test_what_was_rung_for_waits_for_its_alarm(sql: Sql) -> None:
    await stored(sql, new("a"))
    assert await Turns().ready(sql, NOW - timedelta(seconds=1), "fake", 9, ()) == []


async def test_the_index_leads_from_tenant_to_tenant(sql: Sql) -> None:
    if sql.postgres:
        pytest.skip("test_postgres_plans.py has this for PostgreSQL")
    await stored(sql, new("a"))
    asked: list[tuple[str, list[Any]]] = []
    ask = sql.rows

    async def rows(query: str, values: Any = ()) -> Any:
        asked.append((query, list(values)))
        return await ask(query, values)

    sql.rows = rows  # type: ignore[method-assign]
    await ready(sql, 9)
    for query, values in asked:
        plan = " ".join(r["detail"] for r in await ask(f"EXPLAIN QUERY PLAN {query}", values))
        assert "agentflow_ready (queue=? AND tenant" in plan, plan
        assert "SCAN agentflow_jobs" not in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def test_turns_are_dealt_one_by_one() -> None:
    found = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]
    assert dealt(["a", "b"], found, 9) == (["a1", "b1", "a2", "a3"], "a")
    assert dealt(["b", "a"], found, 2) == (["b1", "a1"], "a")
    assert dealt(["a", "b"], [], 2) == ([], None)
