"""What is old enough goes, in small batches: final jobs with all that is theirs, the bodies of
deliveries that were read, and at last the deliveries themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import structlog
from tortoise.exceptions import BaseORMException
from tortoise.transactions import in_transaction

from agentflow.errors import AgentflowError
from agentflow.store.rows import loads
from agentflow.store.sql import Sql
from agentflow.store.transactions import hold_limit

log = structlog.get_logger(__name__)

BATCH = 200
"""Rows of one transaction, so that nobody waits for it."""

LOOK_EVERY = 60.0

_THEIRS = ("agentflow_history", "agentflow_attempts", "agentflow_tags", "agentflow_handler_runs")
_READ = "('applied', 'ignored', 'expired')"


class Pruner:
    """`jobs`, `bodies` and `deliveries` are ages in days; None keeps for ever. `forget` deletes a
    file of the artifact store by its key."""

    def __init__(
        self,
        now: Callable[[], datetime],
        forget: Callable[[str], Awaitable[None]],
        *,
        jobs: float | None,
        bodies: float,
        deliveries: float | None,
    ) -> None:
        self._now, self._forget = now, forget
        self._jobs, self._bodies, self._deliveries = jobs, bodies, deliveries

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                done = await self.prune()
            except (BaseORMException, AgentflowError) as error:  # the database, or the store
                log.error("Old rows cannot be deleted", error=str(error)[:200])
                done = 0
            await asyncio.sleep(0.05 if done else LOOK_EVERY)

    async def prune(self) -> int:
        """One batch of each kind; returns how many rows it was about."""
        return sum(
            [
                await self._prune_jobs() if self._jobs else 0,
                await self._prune_bodies(),
                await self._prune_deliveries() if self._deliveries else 0,
            ]
        )

    async def _prune_jobs(self) -> int:
        """A job whose handlers are still owed stays. Its files go after the commit: one that is
        left over is better than one that is missed."""
        with hold_limit(None):
            async with in_transaction("default") as tx:
                sql = Sql(tx)
                rows = await sql.rows(
                    'SELECT j."id", j."result" FROM "agentflow_jobs" j'
                    f' WHERE j."finished_at" <= {sql.mark(1)} AND NOT EXISTS ('
                    'SELECT 1 FROM "agentflow_handler_runs" r WHERE r."job_id" = j."id"'
                    " AND r.\"status\" = 'pending')"
                    f' ORDER BY j."finished_at" LIMIT {BATCH}{sql.locking_of("j")}',
                    [self._before(self._jobs)],
                )
                await _delete_jobs(sql, [row["id"] for row in rows])
        for row in rows:
            for artifact in (loads(row["result"]) or {}).get("artifacts", ()):
                if artifact.get("key"):
                    await self._forget(artifact["key"])
        return len(rows)

    async def _prune_bodies(self) -> int:
        """Their ids stay, so that a delivery that comes again is known."""
        with hold_limit(None):
            async with in_transaction("default") as tx:
                sql = Sql(tx)
                rows = await sql.rows(
                    'SELECT "id" FROM "agentflow_inbox" WHERE length("body") > 0'
                    f' AND "applied_at" <= {sql.mark(1)} AND "status" IN {_READ}'
                    f' ORDER BY "applied_at" LIMIT {BATCH}{sql.locking}',
                    [self._before(self._bodies)],
                )
                emptied = [[b"", "{}", row["id"]] for row in rows]
                await sql.update("agentflow_inbox", ("body", "headers"), ("id",), emptied)
        return len(rows)

    async def _prune_deliveries(self) -> int:
        with hold_limit(None):
            async with in_transaction("default") as tx:
                sql = Sql(tx)
                rows = await sql.rows(
                    f'SELECT "id" FROM "agentflow_inbox" WHERE "received_at" <= {sql.mark(1)}'
                    " AND \"status\" NOT IN ('received', 'parked')"
                    f' ORDER BY "received_at" LIMIT {BATCH}{sql.locking}',
                    [self._before(self._deliveries)],
                )
                await _delete(sql, "agentflow_inbox", "id", [row["id"] for row in rows])
        return len(rows)

    def _before(self, days: float | None) -> datetime:
        return self._now() - timedelta(days=days or 0.0)


async def _delete_jobs(sql: Sql, ids: Sequence[str]) -> None:
    for table in _THEIRS:
        await _delete(sql, table, "job_id", ids)
    await _delete(sql, "agentflow_jobs", "id", ids)


async def _delete(sql: Sql, table: str, column: str, ids: Sequence[str]) -> None:
    if ids:
        await sql.rows(f'DELETE FROM "{table}" WHERE {sql.among(column, 1)}', [sql.array(ids)])
