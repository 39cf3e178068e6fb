"""What calls used and cost: one row for each call that ended, and the sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from agentflow.core.pricing import amount_from, from_steps, steps, written
from agentflow.core.results import Cost
from agentflow.store.queries import Reader
from agentflow.store.rows import dumps
from agentflow.store.sql import Sql
from agentflow.types import JsonObject

GROUPS = ("task", "model", "tag", "tenant", "day", "month")
MOST = 1000
"""Groups of one answer."""
MOST_COUNTS = 40 * MOST
"""Units, of all of them together."""

_ROW = (
    "job_id", "attempt", "tenant", "task", "model", "outcome", "usage", "amount", "currency",
    "source", "ended_at",
)  # fmt: skip
_WHOLE = 10_000_000_000
"""Amounts are summed in two parts, so that no sum outgrows 64 bits."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that ended. `cost` is None where nobody knows it."""

    job_id: str
    attempt: int
    tenant: str
    task: str
    model: str | None
    outcome: str
    usage: dict[str, float]
    cost: Cost | None
    tags: Sequence[str]
    at: datetime

    @property
    def amount(self) -> int | None:
        amount = None if self.cost is None else amount_from(self.cost.amount)
        return None if amount is None else steps(amount)


async def record_usage(sql: Sql, ended: Sequence[Ended]) -> None:
    """One row for each call, however often its end is told: what is learned later (an attempt
    given up delivers after all) takes the place of what was not known."""
    known = [e.cost if e.amount is not None else None for e in ended]
    await sql.insert(
        "agentflow_usage",
        _ROW,
        [
            [
                e.job_id, e.attempt, e.tenant, e.task, e.model, e.outcome, dumps(e.usage),
                e.amount, cost and cost.currency, cost and cost.source, e.at,
            ]
            for e, cost in zip(ended, known, strict=True)
        ],
        'ON CONFLICT ("job_id", "attempt") DO UPDATE SET "model" = excluded."model",'
        ' "outcome" = excluded."outcome", "usage" = excluded."usage",'
        ' "amount" = excluded."amount", "currency" = excluded."currency",'
        ' "source" = excluded."source"',
    )  # fmt: skip
    await sql.insert(
        "agentflow_usage_tags",
        ("tenant", "tag", "job_id", "attempt", "ended_at"),
        [(e.tenant, tag, e.job_id, e.attempt, e.at) for e in ended for tag in e.tags],
        'ON CONFLICT ("job_id", "attempt", "tag") DO NOTHING',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Calls that ended from `since` on and before `until`."""

    since: datetime | None = None
    until: datetime | None = None
    task: str | None = None
    model: str | None = None
    tag: str | None = None


async def usage_sums(
    tenant: str | None, groups: Sequence[str], wanted: UsageFilter
) -> tuple[list[JsonObject], bool]:
    """Sums over the calls of a tenant (None: of all), one item for each group, and whether there
    are more than `MOST`. By tag, a call counts for each of its tags."""
    sql = Reader()
    join, where, values = _conditions(sql, tenant, groups, wanted)
    names = {group: _expression(sql, group) for group in groups}
    picked = "".join(f', {expression} AS "{group}"' for group, expression in names.items())
    by = "".join(f", {expression}" for expression in names.values())
    order = "ORDER BY " + ", ".join(f'"{group}"' for group in groups) if groups else ""
    rows = await sql.rows(
        'SELECT u."currency", COUNT(*) AS "calls",'
        f' SUM(u."amount" / {_WHOLE}) AS "whole", SUM(u."amount" % {_WHOLE}) AS "part"{picked}'
        f' FROM "agentflow_usage" u {join} WHERE {where}'
        f' GROUP BY u."currency"{by} {order} LIMIT {4 * MOST}',
        values,
    )
    counted = await sql.rows(
        f'SELECT e."key" AS "unit", SUM({_number(sql)}) AS "count"{picked}'
        f' FROM "agentflow_usage" u {join} {_each_unit(sql)} WHERE {where}'
        f' GROUP BY e."key"{by} {order} LIMIT {MOST_COUNTS}',
        values,
    )
    items = _folded(groups, rows, counted)
    shown = MOST
    if len(counted) == MOST_COUNTS:  # of the last group there may be more
        last = {group: counted[-1][group] for group in groups}
        shown = min(MOST, [item["group"] for item in items].index(last))
    return items[:shown], len(items) > shown or len(rows) == 4 * MOST


def _conditions(
    sql: Sql, tenant: str | None, groups: Sequence[str], wanted: UsageFilter
) -> tuple[str, str, list[Any]]:
    values: list[Any] = []
    where: list[str] = []

    def add(condition: str, value: Any) -> None:
        if value is not None:
            values.append(value)
            where.append(condition.format(sql.mark(len(values))))

    by_tag = wanted.tag is not None or "tag" in groups
    first = "t" if wanted.tag is not None else "u"  # the table whose index leads
    add(f'{first}."tenant" = {{}}', tenant)
    add('t."tag" = {}', wanted.tag)
    add(f'{first}."ended_at" >= {{}}', wanted.since)
    add(f'{first}."ended_at" < {{}}', wanted.until)
    add('u."task" = {}', wanted.task)
    add('u."model" = {}', wanted.model)
    kind = "JOIN" if wanted.tag is not None else "LEFT JOIN"
    join = (
        f'{kind} "agentflow_usage_tags" t ON t."job_id" = u."job_id" AND t."attempt" = u."attempt"'
    )
    return join if by_tag else "", " AND ".join(where) or "1 = 1", values


def _expression(sql: Sql, group: str) -> str:
    match group:
        case "day" | "month" if sql.postgres:
            form = "YYYY-MM-DD" if group == "day" else "YYYY-MM"
            return f"to_char(u.\"ended_at\" AT TIME ZONE 'UTC', '{form}')"
        case "day" | "month":
            return f'substr(u."ended_at", 1, {10 if group == "day" else 7})'
        case "tag":
            return 't."tag"'
        case "task" | "model" | "tenant":
            return f'u."{group}"'
    raise ValueError(f"usage is not grouped by {group}")


def _each_unit(sql: Sql) -> str:
    if sql.postgres:
        return 'CROSS JOIN LATERAL jsonb_each_text(u."usage") AS e("key", "value")'
    return ', json_each(u."usage") AS e'


def _number(sql: Sql) -> str:
    return 'e."value"::numeric' if sql.postgres else 'e."value"'


def _folded(
    groups: Sequence[str], rows: Sequence[JsonObject], counted: Sequence[JsonObject]
) -> list[JsonObject]:
    found: dict[tuple[Any, ...], JsonObject] = {}
    if not groups:
        found[()] = _empty({})
    for row in rows:
        key = tuple(row[group] for group in groups)
        item = found.setdefault(key, _empty({group: row[group] for group in groups}))
        item["calls"] += row["calls"]
        if row["currency"] is None:
            item["unknown"] += row["calls"]
            continue
        amount = Decimal(int(row["whole"])) + from_steps(int(row["part"]))
        item["costs"].append({"amount": written(amount), "currency": row["currency"]})
    for row in counted:
        key = tuple(row[group] for group in groups)
        if key in found:
            found[key]["usage"][row["unit"]] = float(row["count"])
    for item in found.values():
        item["costs"].sort(key=lambda cost: cost["currency"])
        item["usage"] = dict(sorted(item["usage"].items()))
    return list(found.values())


def _empty(group: JsonObject) -> JsonObject:
    return {"group": group, "calls": 0, "unknown": 0, "costs": [], "usage": {}}
