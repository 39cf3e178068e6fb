"""Running handlers inside the writer's transaction, and the rows of runs owed or set aside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from tortoise.transactions import in_transaction

from agentflow.core.job import Job
from agentflow.core.submission import NewJob
from agentflow.errors import AgentflowError
from agentflow.store.inserts import insert_jobs
from agentflow.store.rows import dumps
from agentflow.store.sql import Sql
from agentflow.types import new_id
from agentflow.writer.handlers import Handler, HandlerEvent, JobEvent, JobView, explain
from agentflow.writer.loading import Beside
from agentflow.writer.tools import Prepare

log = structlog.get_logger(__name__)

RUN_COLUMNS = [
    "id",
    "tenant",
    "handler",
    "kind",
    "job_id",
    "inbox_id",
    "event",
    "status",
    "tries",
    "error",
    "created_at",
    "wake_at",
    "done_at",
]


class BudgetSpentError(AgentflowError):
    """The handlers of this batch have used up their time; the rest comes in the next batch."""


@dataclass(slots=True)
class Budget:
    """Seconds for all handlers of a batch, and for each."""

    left: float
    each: float

    def take(self) -> float:
        """Seconds for the next handler. Raises `BudgetSpentError`."""
        if self.left <= 0:
            raise BudgetSpentError
        return min(self.each, self.left)


@dataclass(slots=True)
class Ran:
    """What handlers left behind in this transaction."""

    rows: list[list[Any]] = field(default_factory=list)
    new_jobs: list[NewJob] = field(default_factory=list)


def job_event(kind: str, job: Job, beside: Beside, now: datetime) -> JobEvent:
    view = JobView(
        id=job.id,
        task=job.task,
        status=job.status,
        tenant=job.tenant,
        attempt=job.attempt,
        entity=beside.entity,
        tags=beside.tags,
        metadata=beside.metadata,
        input=beside.input,
    )
    return JobEvent(kind, view, now, job.result, job.error, job.progress)


async def run_in(
    handler: Handler,
    event: HandlerEvent,
    prepare: Prepare,
    tenant: str,
    budget: Budget,
) -> list[NewJob]:
    """Run one handler in a savepoint and store the jobs it wants. Raises what it raises, after
    its writes are undone; a time-out ends the budget, so that others need not wait for its like."""
    seconds = budget.take()
    began = time.monotonic()
    try:
        async with in_transaction("default") as savepoint:
            async with asyncio.timeout(seconds):
                specs = await handler.call(event, savepoint)
            new = [prepare(spec, tenant) for spec in specs]
            await insert_jobs(Sql(savepoint), new)
        return new
    except TimeoutError:
        budget.left = 0
        raise
    finally:
        budget.left -= time.monotonic() - began


def run_row(
    handler: Handler,
    event: HandlerEvent,
    *,
    tenant: str,
    now: datetime,
    inbox_id: str | None = None,
    error: BaseException | None = None,
) -> list[Any]:
    """A row for a run that failed (`parked`) or is owed after the commit (`pending`)."""
    job = event.job if isinstance(event, JobEvent) else None
    kind = event.kind if isinstance(event, JobEvent) else "webhook"
    progress = event.progress if isinstance(event, JobEvent) else None
    return [
        new_id("run"),
        tenant,
        handler.name,
        kind,
        job.id if job else None,
        inbox_id,
        dumps({"progress": progress if kind == "progress" else None, "at": event.at}),
        "parked" if error else "pending",
        1 if error else 0,
        explain(error) if error else None,
        now,
        None if error else now,
        None,
    ]


async def run_all(
    wanted: Sequence[tuple[Handler, HandlerEvent, str, str | None]],
    prepare: Prepare,
    budget: Budget,
    now: datetime,
) -> Ran:
    """Run each (handler, event, tenant, inbox id), or owe it. Only `BudgetSpentError` is raised,
    and only before the first of them ran."""
    ran = Ran()
    for position, (handler, event, tenant, inbox_id) in enumerate(wanted):
        if handler.after_commit:
            ran.rows.append(run_row(handler, event, tenant=tenant, now=now, inbox_id=inbox_id))
            continue
        if position and budget.left <= 0:
            budget.left = budget.each  # what was begun together is ended together
        try:
            ran.new_jobs += await run_in(handler, event, prepare, tenant, budget)
        except BudgetSpentError:
            raise
        except Exception as error:  # the application's code
            log.warning("Handler failed", handler=handler.name, error=str(error)[:500])
            ran.rows.append(
                run_row(handler, event, tenant=tenant, now=now, inbox_id=inbox_id, error=error)
            )
    return ran
