"""Running handlers inside the writer's transaction, and the rows of runs owed or set aside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from tortoise.exceptions import IntegrityError
from tortoise.transactions import in_transaction

from agentflow.core.job import Job
from agentflow.core.submission import NewJob
from agentflow.errors import AgentflowError
from agentflow.store.intake import insert_new_jobs
from agentflow.store.rows import dumps
from agentflow.store.sql import Sql
from agentflow.store.transactions import crossed
from agentflow.types import new_id
from agentflow.writer.handlers import (
    Handler,
    HandlerEvent,
    JobEvent,
    JobView,
    TooSlow,
    briefly,
    explain,
)
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
class TimeBudget:
    """Seconds for all handlers of a batch, and for each, who always gets them whole.

    The first of a batch are admitted in any case, so that every batch gets somewhere. One that was
    too slow is not run again in the same batch: its like wait for the next, the others go on.
    """

    left: float
    each: float
    begun: bool = False
    slow: set[str] = field(default_factory=set)
    told: Callable[[str, bool, float], None] | None = None
    """Of each run: the handler's name, whether it succeeded, its seconds."""

    def admit(self, handlers: Sequence[Handler]) -> None:
        """Raise `BudgetSpentError` if these must wait. Whoever is admitted together is run."""
        late = self.left < self.each or any(h.name in self.slow for h in handlers)
        if self.begun and late:
            raise BudgetSpentError
        self.begun = True


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
    budget: TimeBudget,
) -> list[NewJob]:
    """Run one handler in a savepoint, store the jobs it wants and return those that are new.

    Raises what it raises, after its writes are undone.
    """
    began, done = time.monotonic(), False
    try:
        async with in_transaction("default") as savepoint:
            specs = await handler.call(event, savepoint, seconds=budget.each)
            new = [prepare(spec, tenant) for spec in specs]
            try:
                async with in_transaction("default") as inner:
                    fresh = await insert_new_jobs(Sql(inner), new)
            except IntegrityError:  # another process stored the same key meanwhile: seen now
                fresh = await insert_new_jobs(Sql(savepoint), new)
        done = True
        return fresh
    except TooSlow:
        budget.slow.add(handler.name)
        raise
    finally:
        seconds = time.monotonic() - began
        budget.left -= seconds
        if budget.told is not None:
            budget.told(handler.name, done, seconds)


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
    budget: TimeBudget,
    now: datetime,
) -> Ran:
    """Run each (handler, event, tenant, inbox id), or owe it. Only `BudgetSpentError` is raised,
    and only before the first of them ran."""
    ran = Ran()
    now_or_never = [handler for handler, *_ in wanted if not handler.after_commit]
    if now_or_never:
        budget.admit(now_or_never)
    for handler, event, tenant, inbox_id in wanted:
        error: Exception | None = None
        if not handler.after_commit:
            try:
                ran.new_jobs += await run_in(handler, event, prepare, tenant, budget)
                continue
            except Exception as failure:  # the application's code
                if crossed(failure):  # each part is tried alone then
                    raise
                log.warning("Handler failed", handler=handler.name, error=briefly(failure))
                error = failure
        row = run_row(handler, event, tenant=tenant, now=now, inbox_id=inbox_id, error=error)
        ran.rows.append(row)
    return ran
