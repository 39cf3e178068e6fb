"""The inbox and the handlers' runs: what was answered with yes has left its trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import orjson

from agentflow.audit.finding import Finding, Kind
from agentflow.audit.standing import LATE
from agentflow.store.rows import Row, instant
from agentflow.store.sql import Sql

PAGE = 500

_STATUSES = {"received", "applied", "parked", "ignored", "failed", "expired"}
_KINDS = {"webhook", "command", "poison"}
_RUNS = {"pending", "parked", "done"}

_TRACELESS = {"nothing_new", "canceling", "changed", "nothing_collected", "repeated"}
"""Reasons of decisions that may write no history."""


async def inbox_page(sql: Sql, after: str) -> list[Row]:
    """The next rows in the order of their ids, with `cancels` for commands that do."""
    rows = await sql.rows(
        'SELECT i."id", i."kind", i."status", i."reason", i."job_id", i."received_at",'
        ' i."applied_at", i."wake_at",'
        ' CASE WHEN i."kind" = \'command\' THEN i."body" END AS "body",'
        ' (SELECT COUNT(*) FROM "agentflow_parked" p WHERE p."inbox_id" = i."id") AS "parked"'
        f' FROM "agentflow_inbox" i WHERE i."id" > {sql.mark(1)} ORDER BY i."id" LIMIT {PAGE}',
        [after],
    )
    return list(rows)


def inbox_findings(row: Row, now: datetime) -> Iterator[Finding]:
    """What a row of `inbox_page` says of itself."""
    id, status, wake_at = row["id"], row["status"], instant(row["wake_at"])
    if status not in _STATUSES or row["kind"] not in _KINDS:
        yield Finding(Kind.INBOX, id, None, f"a {row['kind']} that is {status}")
    elif (status == "received") is not (row["applied_at"] is None):
        yield Finding(Kind.INBOX, id, None, f"{status}, looked at at {row['applied_at']}")
    if status == "parked" and (wake_at is None or not row["parked"]):
        lacks = "alarm" if wake_at is None else "id to wait for"
        yield Finding(Kind.PARKED, id, None, f"parked without an {lacks}")
    due = instant(row["received_at"]) if status == "received" else wake_at
    if due is not None and due < now - LATE:
        yield Finding(Kind.OVERDUE, id, None, f"{status}, due since {due}")


async def untold(sql: Sql, page: Sequence[Row]) -> list[Row]:
    """The rows that claim to be applied to a job that is there, but left no entry in it.

    An entry under the provider's own id of the event does not name the delivery that brought it:
    a job with such an entry is taken to know all its deliveries."""
    claims = {row["id"]: row for row in page if _claims(row)}
    if not claims:
        return []
    jobs = sql.array({row["job_id"] for row in claims.values()})
    known = await sql.rows(f'SELECT "id" FROM "agentflow_jobs" WHERE {sql.among("id", 1)}', [jobs])
    told = await sql.rows(
        f'SELECT "job_id", "envelope_id" FROM "agentflow_history" WHERE {sql.among("job_id", 1)}'
        " AND (\"envelope_id\" LIKE 'wh:%' OR \"envelope_id\" LIKE 'cmd:%')",
        [jobs],
    )
    there = {row["id"] for row in known}
    heard = {row["envelope_id"].split(":")[1] for row in told}
    by_event = {row["job_id"] for row in told if row["envelope_id"].startswith("wh:id:")}
    known_to = there - by_event
    return [row for id, row in claims.items() if row["job_id"] in known_to and id not in heard]


async def told_elsewhere(sql: Sql, ids: Sequence[str]) -> set[str]:
    """Those whose entry is in another job: a delivery may speak of several. Reads every history."""
    if not ids:
        return set()
    place = 'substr("envelope_id", 4, 36)'
    rows = await sql.rows(
        f'SELECT DISTINCT {place} AS "id" FROM "agentflow_history"'
        f" WHERE \"envelope_id\" LIKE 'wh:%' AND {sql.among(place, 1)}",
        [sql.array(ids)],
    )
    return {row["id"] for row in rows}


def _claims(row: Row) -> bool:
    if row["status"] != "applied" or row["job_id"] is None:
        return False
    if row["kind"] == "webhook":
        return row["reason"] not in _TRACELESS
    return row["kind"] == "command" and _cancels(row["body"])


def _cancels(body: bytes) -> bool:
    try:
        return bool(orjson.loads(bytes(body))["command"] == "cancel")
    except (ValueError, KeyError, TypeError):
        return False


async def lost_matches(sql: Sql) -> list[Finding]:
    """Matches to be made for a delivery that is not there or no longer waits."""
    rows = await sql.rows(
        'SELECT p."inbox_id", i."status" FROM "agentflow_parked" p'
        ' LEFT JOIN "agentflow_inbox" i ON i."id" = p."inbox_id"'
        " WHERE i.\"id\" IS NULL OR i.\"status\" IN ('received', 'expired') LIMIT 1000"
    )
    return [
        Finding(Kind.PARKED, r["inbox_id"], None, f"to be matched, but {r['status'] or 'gone'}")
        for r in rows
    ]


async def run_page(sql: Sql, after: str) -> list[Row]:
    rows = await sql.rows(
        'SELECT "id", "status", "created_at", "wake_at", "done_at" FROM "agentflow_handler_runs"'
        f' WHERE "id" > {sql.mark(1)} ORDER BY "id" LIMIT {PAGE}',
        [after],
    )
    return list(rows)


def run_findings(row: Row, now: datetime) -> Iterator[Finding]:
    status, wake_at = row["status"], instant(row["wake_at"])
    pending, done = wake_at is not None, row["done_at"] is not None
    if status not in _RUNS or (pending, done) != (status == "pending", status == "done"):
        said = f"{status}, to be run at {wake_at}, done at {row['done_at']}"
        yield Finding(Kind.RUN, row["id"], None, said)
    elif wake_at is not None and wake_at < now - LATE:
        yield Finding(Kind.OVERDUE, row["id"], None, f"{status}, due since {wake_at}")
