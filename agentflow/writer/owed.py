"""Runs of the handlers that asked to come after the commit: each is owed in a row, and is run until
it succeeds or was tried often enough; at least once, in whatever process comes by."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog
from tortoise.connection import get_connection
from tortoise.exceptions import BaseORMException
from tortoise.transactions import in_transaction

from agentflow.core.submission import JobSpec
from agentflow.core.transition import growing
from agentflow.errors import NotFound
from agentflow.store.intake import insert_new_jobs
from agentflow.store.rows import instant
from agentflow.store.sql import Sql
from agentflow.telemetry.metrics import Metrics
from agentflow.writer.handlers import MAX_TRIES, briefly, explain
from agentflow.writer.replays import Run, mark, rebuild
from agentflow.writer.tools import Tools

log = structlog.get_logger(__name__)

AT_ONCE = 16
"""A slow handler takes one of these places, and the others go on."""

TIME_LIMIT = 60.0

LEASE = 30.0
"""Seconds beyond the time limit after which a run belongs to nobody again."""

LOOK_EVERY = 5.0
"""Seconds after which the rows are read although nobody rang."""


class Owed:
    """Runs what is owed: several at once, but what belongs to one job one by one, in order.

    `started` is called after new jobs were stored.
    """

    def __init__(
        self,
        tools: Tools,
        now: Callable[[], datetime],
        started: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._tools, self._now, self._started = tools, now, started
        self._running: dict[str, asyncio.Task[None]] = {}
        self._jobs: dict[str, str] = {}
        self.bell = asyncio.Event()

    async def run(self) -> None:
        """Until canceled; what is then under way stays owed."""
        try:
            while True:
                self.bell.clear()
                try:
                    wait = await self._begin()
                except Exception as error:  # the database is away
                    log.error("Owed handlers cannot be read", error=briefly(error))
                    wait = LOOK_EVERY
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self.bell.wait()
        finally:
            running = list(self._running.values())
            for task in running:
                task.cancel()
            begun = list(self._running)
            await asyncio.gather(*running, return_exceptions=True)
            await self._release(begun)

    async def _begin(self) -> float:
        """Start what is due, as far as there is room; the seconds until more will be due."""
        room = AT_ONCE - len(self._running)
        now = self._now()
        if room and Sql(get_connection("default")).postgres:
            for run in await self._leased(now, room):
                self._start(run)
            return LOOK_EVERY
        for run in await self._pending() if room else ():
            job = run["job_id"] or run["id"]
            if job in self._jobs.values():
                continue
            due = instant(run["wake_at"])
            if due > now:
                return min(float((due - now).total_seconds()), LOOK_EVERY)
            self._start(run)
            room -= 1
            if not room:
                break
        return LOOK_EVERY

    def _start(self, run: Run) -> None:
        self._jobs[run["id"]] = run["job_id"] or run["id"]
        self._running[run["id"]] = asyncio.create_task(self._one(run), name="agentflow-owed")

    async def _leased(self, now: datetime, most: int) -> list[Run]:
        """What is due, and now ours for longer than it may take: another writer runs it only if
        we die. A job's runs come one by one, in order."""
        sql = Sql(get_connection("default"))
        until = now + timedelta(seconds=TIME_LIMIT + LEASE)
        return [
            *await sql.rows(
                'UPDATE "agentflow_handler_runs" SET "wake_at" = $1 WHERE "id" IN ('
                ' SELECT r."id" FROM "agentflow_handler_runs" r WHERE r."status" = \'pending\''
                ' AND r."wake_at" <= $2 AND NOT EXISTS (SELECT 1 FROM "agentflow_handler_runs" o'
                ' WHERE o."job_id" = r."job_id" AND o."status" = \'pending\' AND o."id" < r."id")'
                f' ORDER BY r."wake_at", r."id" LIMIT {most} FOR UPDATE OF r SKIP LOCKED'
                ") RETURNING *",
                [until, now],
            )
        ]

    async def _release(self, ids: Sequence[str]) -> None:
        """What we were at belongs to nobody again: the next process need not wait."""
        sql = Sql(get_connection("default"))
        if ids and sql.postgres:
            with contextlib.suppress(BaseORMException):
                await sql.rows(
                    'UPDATE "agentflow_handler_runs" SET "wake_at" = $1'
                    ' WHERE "id" = ANY($2::text[]) AND "status" = \'pending\'',
                    [self._now(), list(ids)],
                )

    async def _pending(self) -> list[Run]:
        """What is owed and not under way, by the time it is due."""
        sql = Sql(get_connection("default"))
        busy = sql.array(self._jobs.values())
        return [
            *await sql.rows(
                'SELECT * FROM "agentflow_handler_runs" WHERE "status" = \'pending\''
                f" AND NOT {sql.among('id', 1)}"
                f' AND ("job_id" IS NULL OR NOT {sql.among("job_id", 2)})'
                f' ORDER BY "wake_at", "id" LIMIT {10 * AT_ONCE}',
                [busy, busy],
            )
        ]

    async def _one(self, run: Run) -> None:
        try:
            await self._done(run, await self._call(run))
        except Exception as error:  # the application's code, or what it wants to start
            log.warning("Handler failed", handler=run["handler"], error=briefly(error))
            try:
                await self._failed(run, error)
            except Exception as away:
                log.error("A handler's failure cannot be stored", error=briefly(away))
                await asyncio.sleep(LOOK_EVERY)
        finally:
            del self._running[run["id"]], self._jobs[run["id"]]
            self.bell.set()

    async def _call(self, run: Run) -> Sequence[JobSpec]:
        handler = self._tools.handlers.names.get(run["handler"])
        if handler is None:
            raise NotFound(f"the application has no handler {run['handler']} any more")
        event = await rebuild(Sql(get_connection("default")), self._tools, run)
        began, done = time.monotonic(), False
        try:
            specs = await handler.call(event, seconds=TIME_LIMIT)
            done = True
            return specs
        finally:
            self._metrics.handled(handler.name, done, time.monotonic() - began)

    async def _done(self, run: Run, specs: Sequence[JobSpec]) -> None:
        new = [self._tools.prepare(spec, run["tenant"]) for spec in specs]
        async with in_transaction("default") as tx:
            sql = Sql(tx)
            stored = await insert_new_jobs(sql, new)
            await mark(sql, run["id"], "done", self._now(), tries=run["tries"] + 1)
        for each in stored:
            self._metrics.submitted[(self._metrics.task(each.job.task),)].inc()
        if stored:
            self._started()

    async def _failed(self, run: Run, error: Exception) -> None:
        now, tries = self._now(), run["tries"] + 1
        why = explain(error)
        async with in_transaction("default") as tx:
            sql = Sql(tx)
            if tries >= MAX_TRIES:
                await mark(sql, run["id"], "parked", now, tries=tries, error=why)
            else:
                again = now + timedelta(seconds=growing(tries))
                await mark(sql, run["id"], "pending", now, tries=tries, error=why, wake_at=again)
