"""Every query that is asked again and again finds its rows by an index, however many there are.

A hundred thousand jobs; a million with AGENTFLOW_MILLION=1.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from support.crowd import EACH, fill
from support.crowd import JOBS as JOBS_OF_EACH
from support.servers import Postgres
from tortoise.transactions import in_transaction

from agentflow import Settings
from agentflow.store import bulk, feed, observing, queries
from agentflow.store.budgets import known_budgets, reservations_of
from agentflow.store.database import Database, Models
from agentflow.store.feed import START, Position
from agentflow.store.inserts import InboxEntry, insert_inbox
from agentflow.store.pauses import paused, ring_resumed
from agentflow.store.queries import JobFilter
from agentflow.store.sql import Sql
from agentflow.store.usage import UsageFilter, usage_sums
from agentflow.writer import inbox, loading
from agentflow.writer.owed import Owed
from agentflow.writer.pruning import Pruner

DATABASES = ()
JOBS = 1_000_000 if os.environ.get("AGENTFLOW_MILLION") else 100_000
pytestmark = pytest.mark.timeout(60 + JOBS / 500)
MOST = 200
FEW = 1500
"""Pages of 8 KB that one query may touch: about three for each row of a full page of results."""

EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
SMALL = {
    "agentflow_budgets", "agentflow_pauses", "agentflow_keys", "tortoise_migrations", "pg_database",
}  # fmt: skip


def job(i: int) -> str:
    return f"job_{i:032x}"


def dlv(i: int) -> str:
    return f"dlv_{i:032x}"


@dataclass
class Plans:
    """What PostgreSQL did for each query that went through `Sql.rows`."""

    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        ask = Sql.rows

        async def explained(sql: Sql, query: str, values: Sequence[Any] = ()) -> Any:
            if query.split()[0] in {"SELECT", "UPDATE", "DELETE", "WITH"}:
                (row,) = await ask(sql, f"{EXPLAIN} {query}", values)
                self.made.append((query, orjson.loads(row["QUERY PLAN"])[0]["Plan"]))
            return await ask(sql, query, values)

        patch.setattr(Sql, "rows", explained)

    def check(self, most: float) -> None:
        assert self.made, "nothing was asked"
        for query, plan in self.made:
            scanned = {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == SEQ}
            assert scanned <= SMALL, f"{query}\n{shown(plan)}"
            assert pages(plan) <= most, f"{pages(plan)} pages: {query}\n{shown(plan)}"


SEQ = "Seq Scan"

NOW = datetime.now(UTC)
"""Of the data, too: the tests of a whole suite begin long after they were collected."""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def pages(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def shown(plan: dict[str, Any]) -> str:
    said = ("Node Type", "Relation Name", "Index Name", "Actual Rows", "Rows Removed by Filter")
    return "\n".join(str([node[s] for s in said if s in node]) for node in nodes(plan))


@pytest.fixture(scope="module")
def crowded(postgres: Postgres, template: str) -> Iterator[str]:
    with postgres.database(template) as url:
        fill(postgres, url.rpartition("/")[2], JOBS, NOW)
        yield url


@pytest.fixture
async def plans(
    crowded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Plans]:
    store = Database(Settings(data_dir=tmp_path, database_url=crowded), Models())
    await store.open(migrate=False, check=False)
    try:
        made = Plans()
        made.install(monkeypatch)
        yield made
    finally:
        await store.close()


MIDDLE = JOBS // 2

Asked = Callable[[Sql], Awaitable[Any]]


def listed(**wanted: Any) -> Asked:
    return lambda sql: queries.list_jobs("default", JobFilter(**wanted))


def letters(**wanted: Any) -> Asked:
    every: dict[str, Any] = {"status": None, "provider": None, "cursor": None}
    return lambda sql: queries.deliveries(
        "default", limit=50, **({"strays": True} | every | wanted)
    )


def runs(**wanted: Any) -> Asked:
    every: dict[str, Any] = {"status": None, "cursor": None, "limit": 50}
    return lambda sql: queries.handler_runs("default", **(every | wanted))


LISTS: dict[str, Asked] = {
    "all": listed(),
    "the next page": listed(cursor=job(MIDDLE)),
    "by status": listed(status="failed"),
    "by a status that is rare": listed(status="expired"),
    "by status, next page": listed(status="waiting", cursor=job(MIDDLE)),
    "by task": listed(task="rare.work"),
    "by task and status": listed(task="fake.work", status="running"),
    "by entity": listed(entity=f"shot:{MIDDLE // 10}"),
    "by entity and status": listed(entity=f"shot:{MIDDLE // 10}", status="succeeded"),
    "by a tag of few": listed(tag="batch-3"),
    "by a tag of many": listed(tag="all"),
    "by a tag of many, next page": listed(tag="all", cursor=job(MIDDLE)),
    "by time": listed(since=NOW - timedelta(hours=1)),
    "of a stranger": lambda sql: queries.list_jobs("nobody", JobFilter()),
    "deliveries": letters(),
    "deliveries, next page": letters(cursor=dlv(MIDDLE)),
    "deliveries by status": letters(status="applied"),
    "deliveries of a tenant": letters(strays=False),
    "deliveries by provider": letters(provider="fake"),
    "handler runs": runs(),
    "handler runs set aside": runs(status="parked"),
}

RECENT = NOW - timedelta(minutes=5)

SUMS: dict[str, Asked] = {
    "a stretch of time": lambda sql: usage_sums("default", ["task"], UsageFilter(since=RECENT)),
    "of all tenants": lambda sql: usage_sums(None, ["tenant"], UsageFilter(since=RECENT)),
    "of a rare task": lambda sql: usage_sums(
        "default", ["day"], UsageFilter(task="rare.work", since=RECENT)
    ),
    "of a tag of few": lambda sql: usage_sums("default", [], UsageFilter(tag="batch-3")),
    "of a tag of many": lambda sql: usage_sums("default", [], UsageFilter(tag="all", since=RECENT)),
    "by tag": lambda sql: usage_sums("default", ["tag"], UsageFilter(since=RECENT)),
}

BULK: dict[str, Asked] = {
    "cancelable": lambda sql: bulk.cancelable("default", JobFilter(task="fake.work", limit=100)),
    "cancelable by tag": lambda sql: bulk.cancelable("default", JobFilter(tag="batch-3")),
    "cancelable by status": lambda sql: bulk.cancelable("default", JobFilter(status="waiting")),
    "retryable": lambda sql: bulk.retryable("default", JobFilter(status="failed")),
    "retryable by entity": lambda sql: bulk.retryable("default", JobFilter(entity="shot:77")),
}

ONES: dict[str, Asked] = {
    "a job": lambda sql: queries.get_job("default", job(7)),
    "its input": lambda sql: queries.get_input("default", job(7)),
    "inputs": lambda sql: bulk.inputs("default", [job(i) for i in range(1, 99)]),
    "its history": lambda sql: queries.history("default", job(7)),
    "by key": lambda sql: queries.job_of_request("default", "key-7", "hash"),
    "by keys": lambda sql: queries.jobs_of_keys("default", [f"key-{i}" for i in range(99)]),
    "a delivery": lambda sql: queries.get_delivery("default", dlv(7), strays=False),
    "a command": lambda sql: queries.inbox_status(dlv(3)),
    "a handler run": lambda sql: queries.get_handler_run("default", f"run_{4:032x}"),
    "the oldest due": lambda sql: queries.oldest_due(NOW),
    "the trace of a token": lambda sql: observing.trace_of("fake", "token-9"),
    "a repeated delivery": lambda sql: insert_inbox(sql, [repeated()]),
}

FEED: dict[str, Asked] = {
    "from the start": lambda sql: feed.stretch("default", START, 500),
    "from the middle": lambda sql: feed.stretch("default", Position(MIDDLE, 7), 500),
    "from the end": lambda sql: feed.stretch("default", Position(JOBS, 2**60), 500),
    "of few": lambda sql: feed.stretch("other", Position(MIDDLE, 7), 500),
    "of a stranger": lambda sql: feed.stretch("nobody", START, 500),
    "its end": lambda sql: feed.end("default"),
    "the end of a stranger": lambda sql: feed.end("nobody"),
}

ROOMS = {"fake": 64, "rare": 64}
PLACES = {("fake", f"stray-{i}-7"): (job(i), 1) for i in range(4, 500, 50)}

WRITING: dict[str, Asked] = {
    "what is due": lambda sql: loading.due_jobs(
        sql, NOW, NOW, {"fake": 64, "rare": 64}, set(), MOST
    ),
    "with a pause": lambda sql: loading.due_jobs(sql, NOW, NOW, {"fake": 9}, {"rare.work"}, MOST),
    "the next alarm": lambda sql: loading.next_alarm(sql, ["fake", "rare"]),
    "jobs of a turn": lambda sql: loading.load_jobs(sql, [job(i) for i in range(1, MOST)]),
    "which exist": lambda sql: loading.existing(sql, [job(i) for i in range(1, MOST)]),
    "envelopes known": lambda sql: loading.known_envelopes(
        sql, [(job(i), f"e{i % 5}") for i in range(1, MOST)]
    ),
    "tokens": lambda sql: loading.attempts_by_token(sql, [f"token-{i}" for i in range(MOST)]),
    "external ids": lambda sql: loading.attempts_by_external_id(
        sql, "fake", [f"ext-{i}" for i in range(MOST)]
    ),
    "what was received": lambda sql: inbox.received(sql, MOST),
    "deliveries by id": lambda sql: inbox.rows_of(sql, [dlv(i) for i in range(MOST)]),
    "what is parked": lambda sql: inbox.unpark(sql, set(PLACES)),
    "what is paused": paused,
    "which budgets there are": known_budgets,
    "reservations": lambda sql: reservations_of(sql, [job(i) for i in range(20)]),
}


def repeated() -> InboxEntry:
    return InboxEntry(
        id="dlv_x", kind="webhook", body=b"", received_at=NOW, provider="fake", dedup_key="id:9"
    )


async def forget(key: str) -> None: ...


def owed() -> Owed:
    nothing: Any = None
    return Owed(nothing, lambda: NOW, lambda: None, nothing)


def pruner() -> Pruner:
    return Pruner(lambda: NOW, forget, jobs=0.1, bodies=0.1, deliveries=0.1)


CHORES: dict[str, Asked] = {
    "handlers owed": lambda sql: owed()._leased(NOW, 16),
    "parked too long": lambda sql: inbox.expire_parked(sql, NOW),
    "old jobs": lambda sql: pruner()._prune_jobs(),
    "old bodies": lambda sql: pruner()._prune_bodies(),
    "old deliveries": lambda sql: pruner()._prune_deliveries(),
}

ALL_OPEN: dict[str, Asked] = {  # which they have to touch
    "how many are open": lambda sql: observing.open_jobs(),
    "how many collect files": lambda sql: observing.collecting(NOW),
    "rings after an outage": lambda sql: loading.ring_again(sql, NOW),
    "rings after a pause": lambda sql: ring_resumed(sql, "rare.work", NOW),
}


class Undone(Exception):
    """The data stays as it is for the next test."""


async def run(ask: Asked) -> None:
    try:
        async with in_transaction() as tx:
            await ask(Sql(tx))
            raise Undone
    except Undone:
        pass


@pytest.mark.parametrize("ask", LISTS.values(), ids=LISTS)
async def test_a_list_reads_about_what_it_shows(plans: Plans, ask: Asked) -> None:
    await run(ask)
    plans.check(FEW)


@pytest.mark.parametrize("ask", SUMS.values(), ids=SUMS)
async def test_a_sum_reads_the_calls_of_its_time(plans: Plans, ask: Asked) -> None:
    await run(ask)
    plans.check(FEW)


@pytest.mark.parametrize("ask", BULK.values(), ids=BULK)
async def test_a_bulk_operation_reads_nothing_of_what_is_long_over(
    plans: Plans, ask: Asked
) -> None:
    await run(ask)
    plans.check(max(FEW, JOBS // 100))


@pytest.mark.parametrize("ask", (ONES | FEED).values(), ids=ONES | FEED)
async def test_one_is_found_by_its_name_and_the_feed_by_its_position(
    plans: Plans, ask: Asked
) -> None:
    await run(ask)
    plans.check(FEW)


@pytest.mark.parametrize("ask", WRITING.values(), ids=WRITING)
async def test_a_turn_reads_about_what_it_writes(plans: Plans, ask: Asked) -> None:
    await run(ask)
    plans.check(FEW)


@pytest.mark.parametrize("ask", CHORES.values(), ids=CHORES)
async def test_a_chore_touches_its_batch(plans: Plans, ask: Asked) -> None:
    await run(ask)
    plans.check(20 * MOST)


@pytest.mark.parametrize("ask", ALL_OPEN.values(), ids=ALL_OPEN)
async def test_what_is_about_open_jobs_reads_no_others(plans: Plans, ask: Asked) -> None:
    await run(ask)
    plans.check(float("inf"))


async def test_a_plan_made_when_there_were_few_jobs_is_not_kept_for_many(
    postgres: Postgres, template: str, tmp_path: Path
) -> None:
    with postgres.database(template) as url:
        store = Database(Settings(data_dir=tmp_path, database_url=url), Models())
        await store.open(migrate=False)
        try:
            await add(url, above=0, upto=50)
            async with in_transaction() as tx:
                await tx.execute_query("ANALYZE agentflow_jobs")
                session: Any = tx._connection  # type: ignore[attr-defined]
                update = "UPDATE agentflow_jobs SET checks = 1 WHERE id = ANY($1)"
                await session.execute(f"PREPARE p (text[]) AS {update}")
                for _ in range(10):  # from the sixth on, a plan for any value may be kept
                    await session.execute("EXECUTE p (ARRAY['job'])")
                await add(url, above=50, upto=20_000)
                said = await session.fetchval(f"{EXPLAIN} EXECUTE p (ARRAY['{job(7)}'])")
                plan = orjson.loads(said)[0]["Plan"]
                assert pages(plan) < 50, shown(plan)
        finally:
            await store.close()


async def add(url: str, *, above: int, upto: int) -> None:
    """More jobs, of which nobody tells the planner."""
    stranger = await asyncpg.connect(url)
    await stranger.execute(EACH.format(jobs=upto))
    await stranger.execute(f"DELETE FROM made WHERE i <= {above}")
    await stranger.execute(JOBS_OF_EACH.format(jobs=upto))
    await stranger.close()
