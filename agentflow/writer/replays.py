"""Runs of handlers that were set aside, asked for again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from agentflow.core.results import Progress
from agentflow.core.submission import NewJob
from agentflow.errors import NotFound
from agentflow.store.rows import instant, loads
from agentflow.store.sql import Sql
from agentflow.webhooks.reading import delivery_of, type_of
from agentflow.writer.handlers import HandlerEvent, WebhookEvent, explain
from agentflow.writer.inbox import rows_of
from agentflow.writer.letter import Letter
from agentflow.writer.loading import load_jobs
from agentflow.writer.runs import TimeBudget, job_event, run_in
from agentflow.writer.tools import Tools

Run = Mapping[str, Any]


async def handler_retries(
    sql: Sql, tools: Tools, letter: Letter, id: str, budget: TimeBudget, now: datetime
) -> list[NewJob]:
    """Run the handler of the run that the command `letter` names, in the writer's transaction,
    and return the jobs it started; one that comes after the commit is owed again.

    Raises `BudgetSpentError` if it must wait for the next batch.
    """
    run = await _run_row(sql, id)
    if run is None or run["status"] != "parked":
        letter.fail("there is no such run set aside")
        return []
    handler = tools.handlers.names.get(run["handler"])
    if handler is None:
        letter.fail(f"the application has no handler {run['handler']} any more")
        return []
    if handler.after_commit:
        await mark(sql, run["id"], "pending", now, wake_at=now, tries=0)
        return []
    budget.admit([handler])
    try:
        event = await rebuild(sql, tools, run)
        new = await run_in(handler, event, tools.prepare, run["tenant"], budget)
    except Exception as error:  # the application's code, again
        await mark(sql, run["id"], "parked", now, tries=run["tries"] + 1, error=explain(error))
        letter.fail(error)
        return []
    await mark(sql, run["id"], "done", now, tries=run["tries"] + 1)
    return new


async def rebuild(sql: Sql, tools: Tools, run: Run) -> HandlerEvent:
    """The event a run was about. Raises `NotFound` if its job or delivery is gone."""
    if run["kind"] == "webhook":
        row = (await rows_of(sql, [run["inbox_id"]])).get(run["inbox_id"])
        if row is None:
            raise NotFound("the delivery is gone")
        delivery = delivery_of(row)
        provider = tools.catalogue.provider(row["provider"]).provider
        return WebhookEvent(
            delivery, type_of(provider, delivery), instant(loads(run["event"])["at"])
        )
    loaded = await load_jobs(sql, [run["job_id"]], lock=False)
    if run["job_id"] not in loaded:
        raise NotFound("the job is gone")
    job, beside = loaded[run["job_id"]]
    said = loads(run["event"])
    event = job_event(run["kind"], job, beside, instant(said["at"]))
    progress = said.get("progress")
    return replace(event, progress=Progress(**progress)) if progress else event


async def _run_row(sql: Sql, id: str) -> Run | None:
    rows = await sql.rows(
        f'SELECT * FROM "agentflow_handler_runs" WHERE "id" = {sql.mark(1)}{sql.locking}', [id]
    )
    return rows[0] if rows else None


async def mark(
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
