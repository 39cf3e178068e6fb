"""Budgets: caps on what the calls of a tenant, or of one tag, may cost in a day, a month or at all.

Amounts are whole numbers of `pricing.STEP`. The writer alone changes the rows, and locks one while
it decides by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from agentflow.core.pricing import from_steps, written
from agentflow.store.queries import Reader, rfc3339
from agentflow.store.rows import Row
from agentflow.store.sql import Sql
from agentflow.types import JsonObject

Period: TypeAlias = Literal["day", "month", "total"]

Known: TypeAlias = Mapping[tuple[str, str], Sequence[str]]
"""The ids of the budgets there are, by tenant and tag; the tag is empty where there is none."""

_COLUMNS = (
    "id", "tenant", "tag", "period", "currency", "cap", "per_call", "note", "since", "spent",
    "reserved",
)  # fmt: skip
_SELECT = ", ".join(f'"{c}"' for c in _COLUMNS)


@dataclass(frozen=True, slots=True)
class Budget:
    """`spent` and `reserved` are those of the period that began on the day `since`."""

    id: str
    tenant: str
    tag: str
    period: Period
    currency: str
    cap: int
    per_call: int
    note: str | None = None
    since: str = ""
    spent: int = 0
    reserved: int = 0

    def at(self, now: datetime) -> Budget:
        """The budget in the period of `now`, which begins with nothing spent."""
        since = began(self.period, now)
        return replace(self, since=since, spent=0, reserved=0) if since > self.since else self

    @property
    def name(self) -> str:
        """`the budget of tag film (10 USD a month)`."""
        of = f"tag {self.tag}" if self.tag else f"tenant {self.tenant}"
        span = {"day": " a day", "month": " a month", "total": " in all"}[self.period]
        return f"the budget of {of} ({money(self.cap)} {self.currency}{span})"


def began(period: Period, now: datetime) -> str:
    """The first day, in UTC, of the period that `now` is in; empty where there is but one."""
    day = now.astimezone(UTC).date().isoformat()
    return {"day": day, "month": f"{day[:7]}-01", "total": ""}[period]


def money(count: int) -> str:
    return written(from_steps(count))


async def known_budgets(sql: Sql) -> Known:
    rows = await sql.rows('SELECT "id", "tenant", "tag" FROM "agentflow_budgets" ORDER BY "id"')
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found.setdefault((row["tenant"], row["tag"]), []).append(row["id"])
    return found


async def lock_budgets(sql: Sql, ids: Collection[str]) -> list[Budget]:
    """These budgets as they are now, and to the end of the transaction; those that are gone are
    left out."""
    lock = " FOR UPDATE" if sql.postgres else ""
    rows = await sql.rows(
        f'SELECT {_SELECT} FROM "agentflow_budgets" WHERE {sql.among("id", 1)} ORDER BY "id"{lock}',
        [sql.array(sorted(ids))],
    )
    return [_budget(row) for row in rows]


async def write_budgets(sql: Sql, budgets: Sequence[Budget]) -> None:
    await sql.update(
        "agentflow_budgets",
        ("since", "spent", "reserved"),
        ("id",),
        [[b.since, b.spent, b.reserved, b.id] for b in budgets],
    )


async def set_budget(sql: Sql, wanted: Budget, now: datetime) -> None:
    """Make this budget, or change the one of its tenant, tag and period. A new one, and one in
    another currency, begins with what was spent in its period so far; a call of unknown cost
    counts as `per_call`."""
    since = began(wanted.period, now)
    spent = await _spent(sql, wanted, since)
    await sql.insert(
        "agentflow_budgets",
        (*_COLUMNS, "created_at"),
        [
            [
                wanted.id, wanted.tenant, wanted.tag, wanted.period, wanted.currency, wanted.cap,
                wanted.per_call, wanted.note, since, spent, 0, now,
            ]
        ],
        'ON CONFLICT ("tenant", "tag", "period") DO UPDATE SET "cap" = excluded."cap",'
        ' "per_call" = excluded."per_call", "note" = excluded."note",'
        ' "spent" = CASE WHEN "agentflow_budgets"."currency" = excluded."currency"'
        ' THEN "agentflow_budgets"."spent" ELSE excluded."spent" END,'
        ' "currency" = excluded."currency"',
    )  # fmt: skip


async def _spent(sql: Sql, budget: Budget, since: str) -> int:
    values: list[object] = [budget.tenant]
    where = [f'u."tenant" = {sql.mark(1)}']
    join = ""
    if budget.tag:
        values.append(budget.tag)
        join = 'JOIN "agentflow_usage_tags" t ON t."job_id" = u."job_id"'
        join += ' AND t."attempt" = u."attempt"'
        where.append(f't."tag" = {sql.mark(2)}')
    if since:
        values.append(datetime.fromisoformat(since).replace(tzinfo=UTC))
        where.append(f'u."ended_at" >= {sql.mark(len(values))}')
    rows = await sql.rows(
        'SELECT u."currency", COUNT(*) AS "calls", SUM(u."amount") AS "amount"'
        f' FROM "agentflow_usage" u {join} WHERE {" AND ".join(where)} GROUP BY u."currency"',
        values,
    )
    return sum(
        int(row["amount"]) if row["currency"] == budget.currency else row["calls"] * budget.per_call
        for row in rows
    )


async def remove_budget(sql: Sql, id: str) -> None:
    for table, column in (("agentflow_reservations", "budget_id"), ("agentflow_budgets", "id")):
        await sql.rows(f'DELETE FROM "{table}" WHERE "{column}" = {sql.mark(1)}', [id])


async def list_budgets(tenant: str | None, now: datetime) -> list[JsonObject]:
    """Each budget as the API shows it, of one tenant or of all."""
    sql = Reader()
    where = "" if tenant is None else f'WHERE "tenant" = {sql.mark(1)}'
    rows = await sql.rows(
        f'SELECT {_SELECT}, "created_at" FROM "agentflow_budgets" {where}'
        ' ORDER BY "tenant", "tag", "period"',
        [] if tenant is None else [tenant],
    )
    return [_view(_budget(row).at(now), row) for row in rows]


def _budget(row: Row) -> Budget:
    return Budget(**{name: row[name] for name in _COLUMNS})


def _view(budget: Budget, row: Row) -> JsonObject:
    left = max(0, budget.cap - budget.spent - budget.reserved)
    return {
        "id": budget.id,
        "tenant": budget.tenant,
        "tag": budget.tag or None,
        "period": budget.period,
        "currency": budget.currency,
        "cap": money(budget.cap),
        "per_call": money(budget.per_call),
        "spent": money(budget.spent),
        "reserved": money(budget.reserved),
        "left": money(left),
        "since": budget.since or None,
        "note": budget.note,
        "created_at": rfc3339(row["created_at"]),
    }


# Reservations


async def reservations_of(sql: Sql, jobs: Collection[str]) -> list[Row]:
    """What calls of these jobs have reserved."""
    rows: Sequence[Row] = await sql.rows(
        'SELECT "job_id", "attempt", "budget_id", "since", "amount" FROM "agentflow_reservations"'
        f" WHERE {sql.among('job_id', 1)}",
        [sql.array(jobs)],
    )
    return list(rows)


async def write_reservations(
    sql: Sql,
    made: Sequence[tuple[str, int, str, str, int]],
    ended: Sequence[tuple[str, int]],
) -> None:
    """Add those of (job, attempt, budget, since, amount), and delete those of (job, attempt)."""
    columns = ("job_id", "attempt", "budget_id", "since", "amount")
    await sql.insert("agentflow_reservations", columns, made)
    for job, attempt in ended:
        await sql.rows(
            f'DELETE FROM "agentflow_reservations" WHERE "job_id" = {sql.mark(1)}'
            f' AND "attempt" = {sql.mark(2)}',
            [job, attempt],
        )
