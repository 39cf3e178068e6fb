"""Which jobs a bulk operation is about, and what is needed to submit many again."""

from __future__ import annotations

from collections.abc import Sequence

from agentflow.core.job import Status
from agentflow.store.queries import AGAIN, JobFilter, Reader, conditions
from agentflow.store.rows import Row

_CANCELABLE = (Status.SCHEDULED, Status.QUEUED, Status.RUNNING, Status.WAITING)
_RETRYABLE = (Status.FAILED, Status.CANCELED, Status.EXPIRED)

_UNASKED = (
    'j."id" NOT IN (SELECT "job_id" FROM "agentflow_inbox" WHERE "status" = \'received\''
    ' AND "kind" = \'command\' AND "job_id" IS NOT NULL)'
)


def retry_key(id: str) -> str:
    """The idempotency key of a job's bulk retry: however often it is asked for, there is one."""
    return f"retry:{id}"


_UNRETRIED = (
    'NOT EXISTS (SELECT 1 FROM "agentflow_jobs" r WHERE r."tenant" = j."tenant"'
    f' AND r."idempotency_key" = \'{retry_key("")}\' || j."id")'
)


async def cancelable(tenant: str, wanted: JobFilter) -> list[str]:
    """Open jobs of this filter, oldest first, and one more than its limit if there are more.

    Left out are those whose cancel is under way, so that asking again goes on to the next.
    """
    return await _ids(tenant, wanted, _CANCELABLE, _UNASKED)


async def retryable(tenant: str, wanted: JobFilter) -> list[str]:
    """The same for final jobs without a bulk retry: succeeded ones only if the filter names
    this status."""
    asked = wanted.status == Status.SUCCEEDED
    return await _ids(tenant, wanted, (Status.SUCCEEDED,) if asked else _RETRYABLE, _UNRETRIED)


async def _ids(tenant: str, wanted: JobFilter, statuses: Sequence[Status], but: str) -> list[str]:
    """Each status by itself, as the index has them: the oldest jobs are mostly of another."""
    sql = Reader()
    join, where, values = conditions(sql, tenant, wanted)
    most = wanted.limit + 1
    each = [
        f'SELECT * FROM (SELECT j."id" FROM "agentflow_jobs" j {join} WHERE {where}'
        f" AND j.\"status\" = '{status.value}' AND {but}"
        f' ORDER BY j."id" LIMIT {most}) AS "{status.value}"'
        for status in statuses
        if wanted.status in (None, status)
    ]
    if not each:
        return []
    repeated = values if sql.postgres else values * len(each)
    rows = await sql.rows(f'{" UNION ALL ".join(each)} ORDER BY "id" LIMIT {most}', repeated)
    return [row["id"] for row in rows]


async def inputs(tenant: str, ids: Sequence[str]) -> list[Row]:
    """What is needed to submit these jobs again, oldest first."""
    sql = Reader()
    rows: Sequence[Row] = await sql.rows(
        f'SELECT {AGAIN} FROM "agentflow_jobs" WHERE "tenant" = {sql.mark(1)}'
        f' AND {sql.among("id", 2)} ORDER BY "id"',
        [tenant, sql.array(ids)],
    )
    return list(rows)
