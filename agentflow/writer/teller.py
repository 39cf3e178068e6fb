"""Telling the application's handlers what a turn brought, within the turn's time for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

from agentflow.core.submission import NewJob
from agentflow.errors import UsageError
from agentflow.store.sql import Sql
from agentflow.telemetry import traces
from agentflow.telemetry.metrics import Metrics
from agentflow.writer.batch import Held
from agentflow.writer.commands import RetryHandler
from agentflow.writer.handlers import Handler, HandlerEvent
from agentflow.writer.letter import Letter
from agentflow.writer.replays import handler_retries
from agentflow.writer.runs import (
    RUN_COLUMNS,
    BudgetSpentError,
    TimeBudget,
    job_event,
    run_all,
    run_row,
)
from agentflow.writer.tools import Tools

_BROKEN = "It, or another handler in its turn, broke the writer's transaction."

Wanted: TypeAlias = tuple[Handler, HandlerEvent, str, str | None]
"""A handler, what it is told, the tenant, and the inbox row that says it."""


class Teller:
    """Gathers what follows from it: `new_jobs`, and whether runs are `owed` after the commit."""

    def __init__(
        self,
        sql: Sql,
        tools: Tools,
        now: datetime,
        *,
        calls_handlers: bool = True,
        metrics: Metrics | None = None,
    ) -> None:
        self._sql, self._tools, self._now = sql, tools, now
        self._calls_handlers = calls_handlers
        self._budget = TimeBudget(
            tools.handler_budget, tools.handler_timeout, told=metrics.handled if metrics else None
        )
        self.new_jobs: list[NewJob] = []
        self.owed = False

    async def tell(self, held: Held) -> bool:
        """Run the handlers for a job's news; False if the budget does not allow it now."""
        wanted: list[Wanted] = []
        for kind, job in held.news:
            event = None
            for handler in self._tools.handlers.for_job(job.task, kind):
                event = event or job_event(kind, job, held.beside, self._now)
                wanted.append((handler, event, job.tenant, None))
        with traces.within(held.beside.trace if wanted else None):  # the jobs they start too
            return await self._run(wanted)

    async def read_out(self, letter: Letter) -> None:
        """Run the handlers for a delivery as it came, or make it wait for the next turn."""
        event = letter.event
        if event is None:
            return
        handlers = self._tools.handlers.for_webhook(letter.row["provider"], event.type)
        tenant, _ = letter.owner()
        ran = await self._run([(handler, event, tenant, letter.id) for handler in handlers])
        letter.waits = not ran
        if ran and handlers and letter.status == "ignored":
            letter.status, letter.reason = "applied", "handled"

    async def retry(self, letter: Letter) -> None:
        """Run once more the handler that a command names."""
        if not isinstance(letter.command, RetryHandler):
            return
        if not self._calls_handlers:
            letter.fail(_BROKEN)
            return
        try:
            self.new_jobs += await handler_retries(
                self._sql, self._tools, letter, letter.command.run, self._budget, self._now
            )
        except BudgetSpentError:
            letter.waits = True
            return
        self.owed = True

    async def _run(self, wanted: Sequence[Wanted]) -> bool:
        if not wanted:
            return True
        if not self._calls_handlers:
            await self._set_aside(wanted)
            return True
        try:
            ran = await run_all(wanted, self._tools.prepare, self._budget, self._now)
        except BudgetSpentError:
            return False
        await self._sql.insert("agentflow_handler_runs", RUN_COLUMNS, ran.rows)
        self.owed |= any(row[7] == "pending" for row in ran.rows)
        self.new_jobs += ran.new_jobs
        return True

    async def _set_aside(self, wanted: Sequence[Wanted]) -> None:
        """After a handler broke the whole transaction: none is run, all are kept for a retry."""
        rows = []
        for handler, event, tenant, inbox_id in wanted:
            error = None if handler.after_commit else UsageError(_BROKEN)
            rows.append(
                run_row(
                    handler, event, tenant=tenant, now=self._now, inbox_id=inbox_id, error=error
                )
            )
        await self._sql.insert("agentflow_handler_runs", RUN_COLUMNS, rows)
        self.owed = True
