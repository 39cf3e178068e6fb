"""Pauses: tasks and providers whose queued jobs wait until somebody resumes them.

They hold for the whole installation. The writer sets and clears them; it dispatches no job of a
paused task or provider, while what is running goes on to its end.
"""

from __future__ import annotations

from datetime import datetime

from agentflow.store.queries import Reader, rfc3339
from agentflow.store.sql import Sql
from agentflow.types import JsonObject


async def set_pause(sql: Sql, target: str, note: str | None, now: datetime) -> None:
    """Pause a task or a provider. If it is paused already, only the note may change."""
    await sql.insert(
        "agentflow_pauses",
        ("target", "note", "created_at"),
        [(target, note, now)],
        'ON CONFLICT ("target") DO UPDATE SET "note" = excluded."note"',
    )


async def clear_pause(sql: Sql, target: str) -> None:
    """Resume it; nothing happens if it is not paused."""
    await sql.rows(f'DELETE FROM "agentflow_pauses" WHERE "target" = {sql.mark(1)}', [target])


async def paused(sql: Sql) -> set[str]:
    """The names of the tasks and providers that are paused."""
    return {row["target"] for row in await sql.rows('SELECT "target" FROM "agentflow_pauses"')}


async def list_pauses() -> list[JsonObject]:
    """Each pause as the API shows it, by name."""
    rows = await Reader().rows(
        'SELECT "target", "note", "created_at" FROM "agentflow_pauses" ORDER BY "target"'
    )
    return [{**row, "created_at": rfc3339(row["created_at"])} for row in rows]


async def ring_resumed(sql: Sql, target: str, now: datetime) -> None:
    """Its queued jobs are due for their ring: claims that came during the pause were denied."""
    await sql.rows(
        f'UPDATE "agentflow_jobs" SET "check_at" = {sql.mark(1)}, "wake_at" = {sql.mark(2)}'
        ' WHERE "id" IN (SELECT "id" FROM "agentflow_jobs" WHERE "status" = \'queued\''
        f' AND ("queue" = {sql.mark(3)} OR "task" = {sql.mark(4)})'
        f' AND "wake_at" > {sql.mark(5)}{sql.locking})',
        [now, now, target, target, now],
    )
