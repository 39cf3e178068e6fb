"""Jobs with all their rows, a page at a time, each page out of one snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TypeAlias

from agentflow.audit.record import Record
from agentflow.store.inserts import ATTEMPT, HISTORY
from agentflow.store.rows import JOB_COLUMNS, Row
from agentflow.store.sql import Sql

Snapshots: TypeAlias = Callable[[], AbstractAsyncContextManager[Sql]]
"""Opens a transaction whose reads all see the database of one moment."""

JOBS = 500
"""Jobs of a page, at most."""
ENTRIES = 20_000
"""Entries of a page, unless a single job has more."""

_JOB = ", ".join(
    f'"{c}"' for c in (*JOB_COLUMNS, "queue", "wake_at", "tags", "idempotency_key", "request_hash")
)
_ATTEMPT = ", ".join(f'"{c}"' for c in ATTEMPT)
_HISTORY = ", ".join(f'"{c}"' for c in HISTORY)


def id_at(prefix: str, at: datetime | None) -> str:
    """What every id made since then is greater than: ids begin with their time (UUIDv7)."""
    if at is None:
        return ""
    return f"{prefix}_{max(0, int(at.astimezone(UTC).timestamp() * 1000)):012x}"


async def count_jobs(sql: Sql, after: str) -> int:
    rows = await sql.rows(
        f'SELECT COUNT(*) AS "n" FROM "agentflow_jobs" WHERE "id" > {sql.mark(1)}', [after]
    )
    return int(rows[0]["n"])


async def job_page(sql: Sql, after: str) -> list[Record]:
    """The next jobs in the order of their ids; an empty page ends it."""
    rows = await sql.rows(
        f'SELECT {_JOB} FROM "agentflow_jobs" WHERE "id" > {sql.mark(1)}'
        f' ORDER BY "id" LIMIT {JOBS}',
        [after],
    )
    return await _records(sql, _few(rows))


async def one_job(sql: Sql, id: str) -> list[Record]:
    rows = await sql.rows(f'SELECT {_JOB} FROM "agentflow_jobs" WHERE "id" = {sql.mark(1)}', [id])
    return await _records(sql, rows)


def _few(jobs: Sequence[Row]) -> Sequence[Row]:
    """As many as their histories allow, and one at least."""
    entries = 0
    for count, job in enumerate(jobs):
        entries += max(1, job["version"])
        if count and entries > ENTRIES:
            return jobs[:count]
    return jobs


async def _records(sql: Sql, jobs: Sequence[Row]) -> list[Record]:
    if not jobs:
        return []
    ids = sql.array(job["id"] for job in jobs)
    mine = sql.among("job_id", 1)
    attempts = await sql.rows(
        f'SELECT {_ATTEMPT} FROM "agentflow_attempts" WHERE {mine} ORDER BY "job_id", "number"',
        [ids],
    )
    history = await sql.rows(
        f'SELECT {_HISTORY} FROM "agentflow_history" WHERE {mine} ORDER BY "job_id", "seq", "id"',
        [ids],
    )
    tags = await sql.rows(
        f'SELECT "job_id", "tenant", "tag" FROM "agentflow_tags" WHERE {mine}', [ids]
    )
    usage = await sql.rows(
        'SELECT "job_id", "attempt", "tenant", "task", "outcome", "amount", "currency"'
        f' FROM "agentflow_usage" WHERE {mine}',
        [ids],
    )
    found = [_by_job(rows) for rows in (attempts, history, tags, usage)]
    return [Record(job, *(rows[job["id"]] for rows in found)) for job in jobs]


def _by_job(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["job_id"]].append(row)
    return found
