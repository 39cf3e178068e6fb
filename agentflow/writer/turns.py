"""Whose queued jobs go to the broker next: the tenants of a provider take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from datetime import datetime

from agentflow.store.sql import Sql

AT_ONCE = 50
"""Tenants looked at in one go; those after them come next."""


class Turns:
    """Remembers, for each provider, who was served last. Forgetting it does no harm."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    async def ready(
        self, sql: Sql, now: datetime, queue: str, most: int, paused: Collection[str]
    ) -> list[str]:
        """Up to `most` queued jobs of a provider whose ring is due: of each tenant alike, and of
        one tenant by priority, then in order."""
        tenants = await self._tenants(sql, queue)
        if not tenants:
            return []
        each = -(-most // len(tenants)) if len(tenants) < 3 else -(-2 * most // len(tenants))
        found = await _jobs(sql, now, queue, tenants, min(each, most), paused)
        jobs, last = dealt(tenants, found, most)
        self._last[queue] = last or self._last.get(queue, "")
        return jobs

    async def _tenants(self, sql: Sql, queue: str) -> list[str]:
        """With queued jobs; those after the last one served come first."""
        last = self._last.get(queue, "")
        after = await _tenants(sql, queue, last, AT_ONCE)
        if len(after) == AT_ONCE or not last:
            return after
        again = await _tenants(sql, queue, "", AT_ONCE - len(after))
        return list(dict.fromkeys([*after, *again]))


def dealt(
    tenants: Sequence[str], found: Sequence[tuple[str, str]], most: int
) -> tuple[list[str], str | None]:
    """One job of each tenant in turn, up to `most`, and the tenant who got the last. `found` are
    tenants and jobs, those of one tenant in order."""
    hands: dict[str, deque[str]] = {tenant: deque() for tenant in tenants}
    for tenant, job in found:
        hands[tenant].append(job)
    jobs: list[str] = []
    last = None
    while len(jobs) < most and any(hands.values()):
        for tenant, hand in hands.items():
            if hand and len(jobs) < most:
                jobs.append(hand.popleft())
                last = tenant
    return jobs, last


async def _tenants(sql: Sql, queue: str, after: str, most: int) -> list[str]:
    """From one tenant to the next by the index, however many jobs each has."""
    q, a, r = (sql.mark(n) for n in (1, 2, 3))
    least = 'SELECT MIN("tenant") FROM "agentflow_jobs" WHERE "status" = \'queued\' AND "queue" = '
    rows = await sql.rows(
        f'WITH RECURSIVE "each" ("tenant", "n") AS (SELECT ({least}{q} AND "tenant" > {a}), 1'
        f' UNION ALL SELECT ({least}{r} AND "tenant" > "each"."tenant"), "n" + 1 FROM "each"'
        f' WHERE "each"."tenant" IS NOT NULL AND "n" < {most})'
        ' SELECT "tenant" FROM "each" WHERE "tenant" IS NOT NULL',
        [queue, after, queue],
    )
    return [row["tenant"] for row in rows]


async def _jobs(
    sql: Sql,
    now: datetime,
    queue: str,
    tenants: Sequence[str],
    each: int,
    paused: Collection[str],
) -> list[tuple[str, str]]:
    """Of each of these tenants: a query by itself, as the index has them."""
    due = '"wake_at"' if sql.postgres else '+"wake_at"'  # which keeps SQLite to the other index
    marks = iter(range(1, 5 * len(tenants) + 1))
    queries: list[str] = []
    values: list[object] = []
    for number, tenant in enumerate(tenants):
        queries.append(
            'SELECT * FROM (SELECT "tenant", "id" FROM "agentflow_jobs" WHERE "status" = \'queued\''
            f' AND "queue" = {sql.mark(next(marks))} AND "tenant" = {sql.mark(next(marks))}'
            f' AND {due} <= {sql.mark(next(marks))} AND "deadline" > {sql.mark(next(marks))}'
            f" AND NOT {sql.among('task', next(marks))}"
            f' ORDER BY "priority" DESC, "id" LIMIT {each}) AS "t{number}"'
        )
        values += [queue, tenant, now, now, sql.array(paused)]
    rows = await sql.rows(" UNION ALL ".join(queries), values)
    return [(row["tenant"], row["id"]) for row in rows]
