"""What the writer reads inside its transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from agentflow.core.job import Attempt, Job
from agentflow.store.rows import JOB_COLUMNS, Row, attempt_from, job_from, loads
from agentflow.store.sql import Sql
from agentflow.types import JobId, Json
from agentflow.writer.turns import Turns

_BESIDE = ("entity", "tags", "metadata", "input", "priority", "callback_url", "trace")
_COLUMNS = ", ".join(f'"{c}"' for c in (*JOB_COLUMNS, *_BESIDE))
_ATTEMPTS = '"job_id", "number", "token", "nonce", "worker", "external_id", "started_at", "account"'


class Beside:
    """A job's columns that no decision depends on, parsed when somebody asks."""

    __slots__ = ("_row",)

    def __init__(self, row: Row) -> None:
        self._row = row

    @property
    def entity(self) -> str | None:
        entity: str | None = self._row["entity"]
        return entity

    @property
    def tags(self) -> list[str]:
        return list(loads(self._row["tags"]))

    @property
    def metadata(self) -> dict[str, Json]:
        return dict(loads(self._row["metadata"]))

    @property
    def input(self) -> Json:
        return loads(self._row["input"])

    @property
    def priority(self) -> int:
        priority: int = self._row["priority"]
        return priority

    @property
    def callback_url(self) -> str | None:
        url: str | None = self._row["callback_url"]
        return url

    @property
    def trace(self) -> str | None:
        trace: str | None = self._row["trace"]
        return trace


async def load_jobs(
    sql: Sql, ids: Collection[str], *, lock: bool = True
) -> dict[JobId, tuple[Job, Beside]]:
    """The jobs with all their attempts, by id; locked until the end of the transaction. Unknown
    ids, and those another writer has locked, are left out: see `existing`."""
    if not ids:
        return {}
    wanted = sql.array(ids)
    rows = await sql.rows(
        f'SELECT {_COLUMNS} FROM "agentflow_jobs" WHERE {sql.among("id", 1)} ORDER BY "id"'
        f"{sql.locking if lock else ''}",
        [wanted],
    )
    tries = await sql.rows(
        f'SELECT {_ATTEMPTS} FROM "agentflow_attempts" WHERE {sql.among("job_id", 1)}'
        ' ORDER BY "job_id", "number"',
        [wanted],
    )
    attempts: dict[str, list[Attempt]] = {}
    for row in tries:
        attempts.setdefault(row["job_id"], []).append(attempt_from(row))
    return {JobId(r["id"]): (job_from(r, attempts[r["id"]]), Beside(r)) for r in rows}


async def existing(sql: Sql, ids: Collection[str]) -> set[JobId]:
    """Those of these ids that belong to a job."""
    if not ids:
        return set()
    rows = await sql.rows(
        f'SELECT "id" FROM "agentflow_jobs" WHERE {sql.among("id", 1)}', [sql.array(ids)]
    )
    return {JobId(row["id"]) for row in rows}


async def known_envelopes(sql: Sql, wanted: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Which of these (job, envelope id) pairs the history has already."""
    if not wanted:
        return set()
    rows = await sql.rows(
        'SELECT "job_id", "envelope_id" FROM "agentflow_history"'
        f" WHERE {sql.among('job_id', 1)} AND {sql.among('envelope_id', 2)}",
        [sql.array({j for j, _ in wanted}), sql.array({e for _, e in wanted})],
    )
    return {(r["job_id"], r["envelope_id"]) for r in rows}


async def due_jobs(
    sql: Sql,
    now: datetime,
    silent: datetime,
    rooms: Mapping[str, int],
    paused: set[str],
    most: int,
    turns: Turns | None = None,
) -> list[str]:
    """Jobs whose alarm went off: scheduled and queued ones by `now`; those of whom somebody should
    have spoken by `silent`, up to which everything said was read. Queued ones only as many of each
    provider as `rooms` says, the tenants in `turns`."""
    due = await sql.rows(
        f'SELECT "id" FROM "agentflow_jobs" WHERE "wake_at" <= {sql.mark(1)}'
        f' AND "status" <> \'queued\' AND ("status" = \'scheduled\' OR "wake_at" <= {sql.mark(2)})'
        f' ORDER BY "wake_at" LIMIT {most}',
        [now, silent],
    )
    due += await sql.rows(
        'SELECT "id" FROM "agentflow_jobs" WHERE "status" = \'queued\''
        f' AND "deadline" <= {sql.mark(1)} ORDER BY "deadline" LIMIT {most}',
        [now],
    )
    ids = [row["id"] for row in due]
    turns = turns or Turns()
    for queue, room in rooms.items():
        if room > 0:
            ids += await turns.ready(sql, now, queue, min(room, most), paused)
    return ids


async def next_alarm(sql: Sql, queues: Collection[str], paused: Collection[str] = ()) -> Any:
    """The earliest instant at which something of ours is due; None if nothing is. Of queued jobs
    only those of these queues, which have room, and of no paused task."""
    rows = await sql.rows(
        'SELECT MIN("at") AS "at" FROM ('
        ' SELECT MIN("wake_at") AS "at" FROM "agentflow_jobs" WHERE "status" <> \'queued\''
        ' UNION ALL SELECT MIN("deadline") FROM "agentflow_jobs" WHERE "status" = \'queued\''
        ' UNION ALL SELECT MIN("wake_at") FROM "agentflow_jobs" WHERE "status" = \'queued\''
        f" AND {sql.among('queue', 1)} AND NOT {sql.among('task', 2)}"
        ' UNION ALL SELECT MIN("wake_at") FROM "agentflow_inbox" WHERE "wake_at" IS NOT NULL'
        ') AS "alarms"',
        [sql.array(queues), sql.array(paused)],
    )
    return rows[0]["at"] if rows else None


async def ring_again(sql: Sql, now: datetime) -> None:
    """Every queued job is due for its ring, since no broker holds a message of it."""
    await sql.rows(
        f'UPDATE "agentflow_jobs" SET "check_at" = {sql.mark(1)}, "wake_at" = {sql.mark(2)}'
        ' WHERE "id" IN (SELECT "id" FROM "agentflow_jobs" WHERE "status" = \'queued\''
        f' AND "wake_at" > {sql.mark(3)}{sql.locking})',
        [now, now, now],
    )


async def attempts_by_token(
    sql: Sql, tokens: Collection[str]
) -> dict[tuple[str, str], tuple[JobId, int]]:
    """By (provider, token): whoever signs as one provider has no say about another's work."""
    if not tokens:
        return {}
    rows = await sql.rows(
        'SELECT "provider", "token", "job_id", "number" FROM "agentflow_attempts"'
        f" WHERE {sql.among('token', 1)}",
        [sql.array(tokens)],
    )
    return {(r["provider"], r["token"]): (JobId(r["job_id"]), r["number"]) for r in rows}


async def attempts_by_external_id(
    sql: Sql, provider: str, ids: Collection[str]
) -> dict[str, tuple[JobId, int]]:
    """The newest attempt for each id the provider uses."""
    if not ids:
        return {}
    rows = await sql.rows(
        'SELECT "external_id", "job_id", "number" FROM "agentflow_attempts"'
        f' WHERE "provider" = {sql.mark(1)} AND {sql.among("external_id", 2)} ORDER BY "id"',
        [provider, sql.array(ids)],
    )
    return {r["external_id"]: (JobId(r["job_id"]), r["number"]) for r in rows}
