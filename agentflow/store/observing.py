"""What operators look at: how much is open, and which trace a delivery belongs to."""

from __future__ import annotations

from datetime import datetime

from agentflow.errors import StoreUnavailable
from agentflow.store.database import Database
from agentflow.store.queries import Reader
from agentflow.store.rows import instant

MOST = 50_000
"""Jobs that are counted, of queued ones and of the others; a look must stay a short one."""


async def open_jobs() -> dict[str, int]:
    """How many jobs are not final, by status. Raises `StoreUnavailable`."""
    rows = await Reader().rows(
        'SELECT "status", COUNT(*) AS "n" FROM ('
        ' SELECT * FROM (SELECT "status" FROM "agentflow_jobs" WHERE "status" = \'queued\''
        f" LIMIT {MOST}) AS a"
        ' UNION ALL SELECT * FROM (SELECT "status" FROM "agentflow_jobs"'
        f' WHERE "status" <> \'queued\' AND "wake_at" IS NOT NULL LIMIT {MOST}) AS b'
        ') AS "open" GROUP BY "status"'
    )
    return {row["status"]: row["n"] for row in rows}


async def collecting(now: datetime) -> tuple[int, float]:
    """How many jobs have files on their way, and for how many seconds the first of them has.
    Raises `StoreUnavailable`."""
    rows = await Reader().rows(
        'SELECT COUNT(DISTINCT j."id") AS "n", MIN(h."decided_at") AS "at" FROM ('
        ' SELECT "id", "phase" FROM "agentflow_jobs"'
        f' WHERE "status" <> \'queued\' AND "wake_at" IS NOT NULL LIMIT {MOST}) AS j'
        ' JOIN "agentflow_history" h ON h."job_id" = j."id" AND h."reason" = \'collecting\''
        " WHERE j.\"phase\" = 'collecting'"
    )
    since = instant(rows[0]["at"])
    age = 0.0 if since is None else (now - since).total_seconds()
    return rows[0]["n"], max(0.0, age)


async def trace_of(provider: str, token: str) -> str | None:
    """The `traceparent` of the job whose attempt has this token. None also if the database is
    away: whoever needs it will find out."""
    try:
        sql = Reader()
        rows = await sql.rows(
            'SELECT j."trace" FROM "agentflow_attempts" a JOIN "agentflow_jobs" j'
            f' ON j."id" = a."job_id" WHERE a."provider" = {sql.mark(1)}'
            f' AND a."token" = {sql.mark(2)}',
            [provider, token],
        )
    except StoreUnavailable:
        return None
    return rows[0]["trace"] if rows else None


async def trouble(database: Database) -> list[str]:
    """Why a query failed, in words: nobody there, or an old schema."""
    try:
        await Reader().rows("SELECT 1")
        return [f"migration {name} is not applied" for name in await database.missing()]
    except Exception as error:  # whatever the database raises, it is not there
        return [f"the database cannot be reached ({type(error).__name__})"]
