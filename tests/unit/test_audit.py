"""The audit of one job: whatever is changed in its rows is said, and nothing is ever raised."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentflow import Accepted, Artifact, Policy, Progressed, Provider, Result, Succeeded
from agentflow.audit import finding
from agentflow.audit.finding import WARNINGS, Kind
from agentflow.audit.record import Record, check
from agentflow.core.events import (
    Collected,
    Envelope,
    Event,
    Failed,
    Source,
    Started,
    Woke,
    load_event,
)
from agentflow.core.job import Job
from agentflow.core.results import Custody, artifact_id
from agentflow.core.submission import JobSpec, prepare
from agentflow.errors import Unavailable
from agentflow.store.inserts import insert_jobs
from agentflow.store.rows import JOB_COLUMNS, dumps, loads
from agentflow.writer.batch import Batch
from agentflow.writer.loading import Beside

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
LATER = NOW + timedelta(seconds=55)
PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
TASK = Provider("acme").task("any", policy=Policy(backoff=0.0))(lambda call, input: input)
TASK.fetch(lambda call, id: None)

JSON = {"policy", "abilities", "progress", "result", "error", "patch", "fields", "timers", "tags"}


class Tables:
    """Keeps rows as `Sql` would, with instants as PostgreSQL gives them."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)

    async def insert(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        empty = dict.fromkeys(JOB_COLUMNS) if table == "agentflow_jobs" else {}
        self.rows[table] += [{**empty, **dict(zip(columns, row, strict=True))} for row in rows]

    async def update(
        self, table: str, columns: Sequence[str], keys: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        for row in rows:
            values, where = row[: len(columns)], list(row[len(columns) :])
            for kept in self.rows[table]:
                if [kept[key] for key in keys] == where:
                    kept.update(zip(columns, values, strict=True))

    def record(self) -> Record:
        kept = deepcopy(self.rows)
        (job,) = kept["agentflow_jobs"]
        tables = ("agentflow_attempts", "agentflow_history", "agentflow_tags")
        return Record(job, *(kept[table] for table in tables))


async def lived(*events: Event) -> Tables:
    tables: Any = Tables()
    new = prepare(JobSpec("acme.any", {}, tags=["x"]), TASK, now=NOW)
    await insert_jobs(tables, [new])
    job, now = new.job, NOW
    for number, event in enumerate(events):
        now += timedelta(seconds=10)
        batch = Batch(now)
        batch.hold({job.id: (job, Beside({"trace": None}))})
        batch.apply(Envelope(f"e{number}", Source.WORKER, now, job.id, event))
        await batch.write(tables, [job.id])
        held: Job | None = batch.job(job.id)
        assert held is not None
        job = held
    return tables


CLAIM = Started("n1", "w", attempt=1)
WAITS = (CLAIM, Accepted("x", attempt=1), Progressed(0.5, attempt=1), Progressed(0.4, attempt=1))
FILES = Result(output=1, artifacts=[Artifact("https://files.test/1")])
LIVES: dict[str, tuple[Event, ...]] = {
    "new": (),
    "waiting": WAITS,
    "again": (CLAIM, Failed(Unavailable(), attempt=1), Woke(), Started("n2", "w", attempt=2)),
    "collecting": (*WAITS, Succeeded(result=FILES, attempt=1)),
    "succeeded": (*WAITS, Succeeded(result=Result(output=1), attempt=1), Woke()),
}


def record(life: str) -> Record:
    return asyncio.run(lived(*LIVES[life])).record()


@pytest.mark.parametrize("life", LIVES)
def test_what_was_decided_is_right_however_the_database_gives_it(life: str) -> None:
    one = record(life)
    assert check(one, LATER).findings == []
    assert check(one, LATER).decided_again == len(one.history) - 1
    for row in (one.job, *one.attempts, *one.history):
        for column, value in row.items():
            if isinstance(value, datetime):
                row[column] = value.isoformat(" ")
            elif column in JSON:
                row[column] = loads(value)
    assert check(one, LATER).findings == []


def test_collected_files_are_right() -> None:
    new = asyncio.run(lived(*LIVES["collecting"]))
    (job,) = new.rows["agentflow_jobs"]
    file = loads(job["result"])["artifacts"][0]
    assert file["id"] == artifact_id(job["id"], 0)
    assert Custody(file["status"]) is Custody.PENDING
    assert Collected([Artifact(**file)]).artifacts[0].id == file["id"]


UNPROVEN = {
    "jobs": {"input", "entity", "priority", "metadata", "retry_of", "idempotency_key",
             "request_hash", "trace", "checks", "callback_url"},
    "attempts": set(),
    "history": {"told_at", "source", "envelope_id", "random"},
    "tags": set(),
}  # fmt: skip
"""Columns no decision depends on, and no rule ties to another. The page names them."""

STRANGE: tuple[Any, ...] = (None, "", "strange", "{}", "[]", '{"a": 1}', -1, 0, 7, 10**6,
                            NOW - timedelta(days=900), NOW + timedelta(days=900))  # fmt: skip


def tables_of(one: Record) -> dict[str, Any]:
    return {"jobs": [one.job], "attempts": one.attempts, "history": one.history, "tags": one.tags}


@pytest.mark.parametrize("life", LIVES)
def test_no_column_can_be_changed_unseen(life: str) -> None:
    good = asyncio.run(lived(*LIVES[life]))
    places = [
        (table, index, column)
        for table, rows in tables_of(good.record()).items()
        for index, row in enumerate(rows)
        for column in row
        if column != "job_id" and column not in UNPROVEN[table]
    ]
    unseen = []
    for table, index, column in places:
        for value in STRANGE:
            one = good.record()
            row = tables_of(one)[table][index]
            if value == row[column] or (column == "fields" and same_event(value, row)):
                continue
            row[column] = value
            if not check(one, LATER).findings:
                unseen.append((table, index, column, value))
    assert unseen == []


def same_event(fields: Any, row: Any) -> bool:
    try:
        return load_event(row["event"], fields) == load_event(row["event"], row["fields"])
    except (TypeError, ValueError):
        return False


def test_nothing_raises_whatever_a_row_holds() -> None:
    good = asyncio.run(lived(*LIVES["again"]))
    for column in good.rows["agentflow_history"][1]:
        for value in (*STRANGE, dumps({"attempts": 3}), dumps({"attempts": {"1": None}})):
            one = good.record()
            one.history[1][column] = value  # type: ignore[index]
            assert isinstance(check(one, LATER).findings, list)


# The page


def sentences() -> dict[str, str]:
    """The docstring of each kind."""
    (body,) = [
        node.body
        for node in ast.parse(inspect.getsource(finding)).body
        if isinstance(node, ast.ClassDef) and node.name == "Kind"
    ]
    found = {}
    for name, said in zip(body[1::2], body[2::2], strict=True):
        assert isinstance(name, ast.Assign)
        assert isinstance(said, ast.Expr)
        found[ast.literal_eval(name.value)] = " ".join(ast.literal_eval(said.value).split())
    return found


def test_every_kind_is_described_on_the_page_in_its_own_words() -> None:
    described = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.M))
    assert described == sentences()
    assert described.keys() == {kind.value for kind in Kind}


def test_warnings_say_so() -> None:
    assert {k for k, said in sentences().items() if said.startswith("Warning: ")} == WARNINGS


def test_the_page_names_what_an_audit_cannot_prove() -> None:
    after = PAGE.read_text().partition("## What it cannot prove")[2]
    named = set(re.findall(r"`(\w+)`", after))
    assert set().union(*UNPROVEN.values()) <= named
