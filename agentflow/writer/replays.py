"""Runs of handlers after the fact: those set aside and asked for again, and those owed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from tortoise.connection import get_connection
from tortoise.transactions import in_transaction

from agentflow.core.results import Progress
from agentflow.core.submission import NewJob
from agentflow.core.transition import growing
from agentflow.errors import NotFound
from agentflow.store.inserts import insert_jobs
from agentflow.store.rows import loads
from agentflow.store.sql import Sql
from agentflow.webhooks.reading import delivery_of, type_of
from agentflow.writer.handlers import MAX_TRIES, HandlerEvent, WebhookEvent, explain
from agentflow.writer.inbox import Letter, rows_of
from agentflow.writer.loading import load_jobs
from agentflow.writer.runs import Budget, job_event, run_in
from agentflow.writer.tools import Tools

log = structlog.get_logger(__name__)

Run = Mapping[str, Any]


async def handler_retries(
    sql: Sql, tools: Tools, letter: Letter, budget: Budget, now: datetime
) -> list[NewJob]:
    """Run the handler that a `retry_handler` command names, in the writer's transaction."""
    run = await _run_row(sql, letter.handler_run or "")
    if run is None or run["status"] != "parked":
        letter.fail("there is no such run set aside")
        return []
    handler = tools.handlers.names.get(run["handler"])
    if handler is None:
        letter.fail(f"the application has no handler {run['handler']} any more")
        return []
    if handler.after_commit:
        await _mark(sql, run["id"], "pending", now, wake_at=now, tries=0)
        return []
    budget.left = max(budget.left, budget.each)
    try:
        event = await rebuild(sql, tools, run, now)
        new = await run_in(handler, event, tools.prepare, run["tenant"], budget)
    except Exception as error:  # the application's code, again
        await _mark(sql, run["id"], "parked", now, tries=run["tries"] + 1, error=explain(error))
        letter.fail(error)
        return []
    await _mark(sql, run["id"], "done", now, tries=run["tries"] + 1)
    return new


async def rebuild(sql: Sql, tools: Tools, run: Run, now: datetime) -> HandlerEvent:
    """The event a run was about. Raises `NotFound` if its job or delivery is gone."""
    if run["kind"] == "webhook":
        row = (await rows_of(sql, [run["inbox_id"]])).get(run["inbox_id"])
        if row is None:
            raise NotFound("the delivery is gone")
        delivery = delivery_of(row)
        provider = tools.catalogue.provider(row["provider"]).provider
        return WebhookEvent(delivery, type_of(provider, delivery), now)
    loaded = await load_jobs(sql, [run["job_id"]])
    if run["job_id"] not in loaded:
        raise NotFound("the job is gone")
    job, beside = loaded[run["job_id"]]
    event = job_event(run["kind"], job, beside, now)
    progress = loads(run["event"]).get("progress")
    return replace(event, progress=Progress(**progress)) if progress else event


class Owed:
    """Runs the handlers that asked to come after the commit, one by one, at least once each."""

    def __init__(self, tools: Tools, now: Callable[[], datetime], told: Callable[[], None]) -> None:
        self._tools, self._now, self._told = tools, now, told
        self.bell = asyncio.Event()

    async def run(self) -> None:
        while True:
            self.bell.clear()
            while await self._one():
                pass
            try:
                await asyncio.wait_for(self.bell.wait(), 5.0)
            except TimeoutError:
                continue

    async def _one(self) -> bool:
        """Run the oldest that is due; False if none is."""
        now = self._now()
        sql = Sql(get_connection("default"))
        rows = await sql.rows(
            'SELECT * FROM "agentflow_handler_runs" WHERE "status" = \'pending\''
            f' AND "wake_at" <= {sql.mark(1)} ORDER BY "wake_at", "id" LIMIT 1',
            [now],
        )
        if not rows:
            return False
        run = rows[0]
        error: str | None = None
        new: list[NewJob] = []
        try:
            handler = self._tools.handlers.names[run["handler"]]
            event = await rebuild(sql, self._tools, run, now)
            async with asyncio.timeout(60):
                specs = await handler.call(event)
            new = [self._tools.prepare(spec, run["tenant"]) for spec in specs]
        except Exception as failure:  # the application's code
            error = explain(failure)
            log.warning("Handler failed", handler=run["handler"], error=str(failure)[:500])
        await self._settle(run, error, new)
        return True

    async def _settle(self, run: Run, error: str | None, new: list[NewJob]) -> None:
        now, tries = self._now(), run["tries"] + 1
        async with in_transaction("default") as tx:
            sql = Sql(tx)
            if error is None:
                await insert_jobs(sql, new)
                await _mark(sql, run["id"], "done", now, tries=tries)
            elif tries >= MAX_TRIES:
                await _mark(sql, run["id"], "parked", now, tries=tries, error=error)
            else:
                again = now + timedelta(seconds=growing(tries))
                await _mark(sql, run["id"], "pending", now, tries=tries, error=error, wake_at=again)
        if new:
            self._told()


async def _run_row(sql: Sql, id: str) -> Run | None:
    rows = await sql.rows(
        f'SELECT * FROM "agentflow_handler_runs" WHERE "id" = {sql.mark(1)}', [id]
    )
    return rows[0] if rows else None


async def _mark(
    sql: Sql,
    id: str,
    status: str,
    now: datetime,
    *,
    tries: int,
    error: str | None = None,
    wake_at: datetime | None = None,
) -> None:
    done = now if status == "done" else None
    await sql.update(
        "agentflow_handler_runs",
        ("status", "tries", "error", "wake_at", "done_at"),
        ("id",),
        [[status, tries, error, wake_at, done, id]],
    )
