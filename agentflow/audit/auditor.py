"""The whole audit: jobs, what strays between them, the inbox and the handlers' runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime

from agentflow.audit.booked import budget_findings
from agentflow.audit.finding import Finding, Kind
from agentflow.audit.inbox import (
    inbox_findings,
    inbox_page,
    lost_matches,
    run_findings,
    run_page,
    told_elsewhere,
    untold,
)
from agentflow.audit.reading import Snapshots, count_jobs, id_at, job_page, one_job
from agentflow.audit.record import Record, check
from agentflow.audit.strays import strays
from agentflow.store.rows import Row, instant
from agentflow.store.sql import Sql

SUSPECTS = 10_000
"""Deliveries looked for in other jobs' histories at once."""


class Audit:
    """One walk through a database. What was looked at is counted in the meantime.

    `job` is the one job to look at; `since` leaves out what is older.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        *,
        now: datetime,
        since: datetime | None = None,
        job: str | None = None,
    ) -> None:
        self._snapshots, self._now, self._job = snapshots, now, job
        self._since = since
        self.jobs = self.entries = self.decided_again = self.deliveries = 0

    async def size(self) -> int:
        """How many jobs there are to look at."""
        if self._job is not None:
            return 1
        async with self._snapshots() as sql:
            return await count_jobs(sql, id_at("job", self._since))

    async def pages(self) -> AsyncIterator[list[Finding]]:
        """What each page of rows shows, often nothing. Memory is bounded by a page."""
        if self._job is not None:
            async with self._snapshots() as sql:
                records = await one_job(sql, self._job)
            yield self._checked(records)
            return
        async for found in self._all_jobs():
            yield found
        async with self._snapshots() as sql:
            found = [*await strays(sql, id_at("job", self._since)), *await lost_matches(sql)]
            found += await budget_findings(sql)
        yield found
        async for found in self._inbox():
            yield found
        async for rows in self._walk(run_page):
            yield [
                f for r in rows if self._wanted(r["created_at"]) for f in run_findings(r, self._now)
            ]

    async def _all_jobs(self) -> AsyncIterator[list[Finding]]:
        after = id_at("job", self._since)
        while True:
            async with self._snapshots() as sql:
                records = await job_page(sql, after)
            if not records:
                return
            after = records[-1].id
            yield self._checked(records)

    def _checked(self, records: Sequence[Record]) -> list[Finding]:
        found: list[Finding] = []
        for record in records:
            checked = check(record, self._now)
            found += checked.findings
            self.jobs += 1
            self.entries += len(record.history)
            self.decided_again += checked.decided_again
        return found

    async def _inbox(self) -> AsyncIterator[list[Finding]]:
        suspects: dict[str, str] = {}
        async for page in self._walk(inbox_page):
            rows = [row for row in page if self._wanted(row["received_at"])]
            self.deliveries += len(rows)
            yield [f for row in rows for f in inbox_findings(row, self._now)]
            async with self._snapshots() as sql:
                suspects |= {row["id"]: row["job_id"] for row in await untold(sql, rows)}
            if len(suspects) > SUSPECTS:
                yield await self._untold(suspects)
                suspects.clear()
        yield await self._untold(suspects)

    async def _untold(self, suspects: dict[str, str]) -> list[Finding]:
        async with self._snapshots() as sql:
            elsewhere = await told_elsewhere(sql, list(suspects))
        return [
            Finding(Kind.DELIVERY, id, None, f"applied to {job}, which does not know it")
            for id, job in suspects.items()
            if id not in elsewhere
        ]

    async def _walk(
        self, page: Callable[[Sql, str], Awaitable[list[Row]]]
    ) -> AsyncIterator[list[Row]]:
        """Every page of a table, in the order of its ids."""
        after = ""
        while True:
            async with self._snapshots() as sql:
                rows = await page(sql, after)
            if not rows:
                return
            after = rows[-1]["id"]
            yield rows

    def _wanted(self, at: object) -> bool:
        return self._since is None or bool(instant(at) >= self._since)
