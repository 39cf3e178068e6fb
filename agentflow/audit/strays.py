"""What no single job shows: rows without their job, and jobs that share what is unique."""

from __future__ import annotations

from agentflow.audit.finding import Finding, Kind
from agentflow.store.sql import Sql

MOST = 1000
"""Strays named of each kind; where there are so many, more would tell nothing new."""


async def strays(sql: Sql, after: str) -> list[Finding]:
    """Of jobs with ids above `after`."""
    return [
        *await _orphans(sql, "agentflow_history", "history", after),
        *await _orphans(sql, "agentflow_attempts", "attempts", after),
        *await _orphans(sql, "agentflow_tags", "tags", after),
        *await _same_keys(sql, after),
        *await _same_tokens(sql, after),
    ]


async def _orphans(sql: Sql, table: str, name: str, after: str) -> list[Finding]:
    rows = await sql.rows(
        f'SELECT DISTINCT r."job_id" FROM "{table}" r WHERE r."job_id" > {sql.mark(1)}'
        ' AND NOT EXISTS (SELECT 1 FROM "agentflow_jobs" j WHERE j."id" = r."job_id")'
        f' ORDER BY r."job_id" LIMIT {MOST}',
        [after],
    )
    return [Finding(Kind.ORPHAN, r["job_id"], None, f"{name} without their job") for r in rows]


async def _same_keys(sql: Sql, after: str) -> list[Finding]:
    rows = await sql.rows(
        'SELECT MAX("id") AS "id", COUNT(*) AS "n" FROM "agentflow_jobs"'
        ' WHERE "idempotency_key" IS NOT NULL GROUP BY "tenant", "idempotency_key"'
        f' HAVING COUNT(*) > 1 AND MAX("id") > {sql.mark(1)} LIMIT {MOST}',
        [after],
    )
    return [
        Finding(Kind.SAME_KEY, r["id"], None, f"one of {r['n']} jobs with its idempotency key")
        for r in rows
    ]


async def _same_tokens(sql: Sql, after: str) -> list[Finding]:
    rows = await sql.rows(
        'SELECT MAX("job_id") AS "id", COUNT(*) AS "n" FROM "agentflow_attempts"'
        f' GROUP BY "token" HAVING COUNT(*) > 1 AND MAX("job_id") > {sql.mark(1)} LIMIT {MOST}',
        [after],
    )
    return [
        Finding(Kind.SAME_TOKEN, r["id"], None, f"one of {r['n']} attempts with its token")
        for r in rows
    ]
