"""What the ledger says of a job's calls, and what budgets have set aside for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from agentflow.audit.finding import Finding, Kind
from agentflow.core.job import Job, Status
from agentflow.core.pricing import amount_from, steps
from agentflow.store.rows import Row
from agentflow.store.sql import Sql

MOST = 1000
"""Findings of each kind; more would tell nothing new."""

Said: TypeAlias = tuple[Kind, str]


def booked_findings(job: Job, lines: Sequence[Row]) -> Iterator[Finding]:
    """`lines` are the rows of `agentflow_usage` of this job; one from before there was a ledger
    has none."""
    for kind, said in (*_delivered(job, lines), *_each(job, lines)):
        yield Finding(kind, job.id, None, said)


def _delivered(job: Job, lines: Sequence[Row]) -> Iterator[Said]:
    cost = job.result.cost if job.result and job.status is Status.SUCCEEDED else None
    if cost is None:
        return
    amount = amount_from(cost.amount)
    told = None if amount is None else (steps(amount), cost.currency)
    mine = [line for line in lines if line["attempt"] == job.attempt]
    if not mine:
        yield Kind.LEDGER, f"attempt {job.attempt} cost something, and is not in the ledger"
    for line in mine:
        if (line["amount"], line["currency"]) != told:
            yield Kind.LEDGER, f"attempt {job.attempt} cost something else in the ledger"


def _each(job: Job, lines: Sequence[Row]) -> Iterator[Said]:
    for line in lines:
        about = f"the line of attempt {line['attempt']}"
        attempt = job.numbered(line["attempt"])
        if (line["tenant"], line["task"]) != (job.tenant, job.task):
            yield Kind.LEDGER, f"{about} is of another tenant or task"
        if attempt is None:
            yield Kind.LEDGER, f"{about} is of none there is"
        elif not job.final and line["attempt"] == job.attempt:
            yield Kind.LEDGER, f"{about} tells of its end, which is not there"
        if (line["amount"] is None) is not (line["currency"] is None):
            yield Kind.LEDGER, f"{about} has an amount and no currency, or the reverse"
        priced = line["outcome"] == Status.SUCCEEDED and line["amount"] is not None
        if priced and job.final and not (job.result and job.result.cost):
            yield Kind.LEDGER, f"{about} has a cost, the job has none"


async def budget_findings(sql: Sql) -> list[Finding]:
    """Budgets whose sums are not those of their reservations, and reservations for nothing."""
    sums = await sql.rows(
        'SELECT b."id", b."reserved", COALESCE(SUM(r."amount"), 0) AS "held"'
        ' FROM "agentflow_budgets" b LEFT JOIN "agentflow_reservations" r'
        ' ON r."budget_id" = b."id" AND r."since" = b."since"'
        f' GROUP BY b."id", b."reserved" HAVING COALESCE(SUM(r."amount"), 0) <> b."reserved"'
        f" LIMIT {MOST}"
    )
    strays = await sql.rows(
        'SELECT DISTINCT r."job_id" FROM "agentflow_reservations" r WHERE NOT EXISTS ('
        ' SELECT 1 FROM "agentflow_jobs" j WHERE j."id" = r."job_id"'
        f' AND j."finished_at" IS NULL) ORDER BY r."job_id" LIMIT {MOST}'
    )
    said = "what is set aside is not the sum of its reservations"
    kept = "something is set aside for a job that is not open"
    return [
        *(Finding(Kind.BUDGET, row["id"], None, said) for row in sums),
        *(Finding(Kind.BUDGET, row["job_id"], None, kept) for row in strays),
    ]
