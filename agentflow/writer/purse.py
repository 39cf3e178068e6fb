"""The budgets that the jobs of one turn fall under: who may call, and what was spent.

A call is granted only if what was spent, what calls under way may yet cost and what this one may
cost fit in the cap; all of that is in one row, locked until the commit. What ends in a turn makes
room in the next one only: its job may have to wait for its handlers, and is not written then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from agentflow.core.pricing import amount_from, steps
from agentflow.core.results import Cost
from agentflow.store.budgets import (
    Budget,
    Known,
    lock_budgets,
    money,
    reservations_of,
    write_budgets,
    write_reservations,
)
from agentflow.store.sql import Sql
from agentflow.types import JobId
from agentflow.writer.batch import Held
from agentflow.writer.ledger import Closed, Ledger

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Refused:
    """The budget has no room for this call, whatever becomes of those under way."""

    message: str


@dataclass(frozen=True, slots=True)
class Waits:
    """There may be room once calls under way have ended."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What one call may cost at most, set aside in a budget."""

    job: JobId
    attempt: int
    budget: str
    since: str
    amount: int


class Purse:
    def __init__(self, sql: Sql, now: datetime, known: Known, ledger: Ledger) -> None:
        self._sql, self._now, self._known, self._ledger = sql, now, known, ledger
        self._budgets: dict[str, Budget] = {}
        self._before: dict[str, Budget] = {}
        self._holds: dict[tuple[JobId, int], list[Hold]] = {}
        """Set aside in earlier turns."""
        self._new: dict[JobId, list[Hold]] = {}
        self._taken: dict[str, int] = {}

    async def open(self, jobs: Iterable[Held]) -> None:
        """Lock the budgets of these jobs, in the order of their ids."""
        if not self._known:
            return
        held = list(jobs)
        wanted = {id for one in held for id in self._ids(one)}
        for row in await reservations_of(self._sql, [one.job.id for one in held]) if held else ():
            hold = Hold(
                row["job_id"], row["attempt"], row["budget_id"], row["since"], row["amount"]
            )
            mine = self._holds.setdefault((hold.job, hold.attempt), [])
            if hold not in mine:
                mine.append(hold)
            wanted.add(hold.budget)
        wanted -= self._budgets.keys()
        for budget in await lock_budgets(self._sql, wanted) if wanted else ():
            self._before[budget.id] = budget
            self._budgets[budget.id] = budget.at(self._now)

    def admit(self, held: Held) -> Refused | Waits | None:
        """Set aside what the attempt in charge may cost, in each budget of its job; or say why
        not. What is called before it is granted cannot be stopped: then nothing is set aside, and
        its cost counts when it has ended."""
        budgets = list(self._mine(held))
        if not budgets or self._ledger.local(held.job.task):
            return None
        bound = self._ledger.bound(held.job.task, held.beside.input, self._now)
        needs = [(budget, _in(budget, bound, budget.per_call)) for budget in budgets]
        refusal = self._refusal(needs)
        if refusal is not None:
            return None if self._ledger.calls_first(held.job) else refusal
        for budget, need in needs:
            job = held.job
            hold = Hold(job.id, job.attempt, budget.id, budget.since, need)
            self._new.setdefault(job.id, []).append(hold)
            self._taken[budget.id] = self._taken.get(budget.id, 0) + need
        return None

    def _refusal(self, needs: Sequence[tuple[Budget, int]]) -> Refused | Waits | None:
        for budget, need in needs:
            if budget.spent + need > budget.cap:
                return Refused(_said(budget, need))
        for budget, need in needs:
            taken = budget.reserved + self._taken.get(budget.id, 0)
            if budget.spent + taken + need > budget.cap:
                return Waits()
        return None

    async def settle(self, written: Sequence[Held]) -> None:
        """Write what these jobs set aside, and what their calls that ended cost."""
        if not self._budgets:
            return
        made = [hold for held in written for hold in self._new.get(held.job.id, ())]
        for hold in made:
            self._holds.setdefault((hold.job, hold.attempt), []).append(hold)
            self._add(hold.budget, hold.since, reserved=hold.amount)
        over: list[Hold] = []
        for held in written:
            for closed in held.closed:
                over += self._close(held, closed)
        kept = [hold for hold in made if hold not in over]
        old = {(hold.job, hold.attempt) for hold in over if hold not in made}
        await write_reservations(
            self._sql,
            [(h.job, h.attempt, h.budget, h.since, h.amount) for h in kept],
            sorted(old),
        )
        changed = [b for id, b in self._budgets.items() if b != self._before[id]]
        await write_budgets(self._sql, changed)

    def _close(self, held: Held, closed: Closed) -> list[Hold]:
        """Give back what the call had set aside, and count what it cost: where nobody knows that,
        what was set aside."""
        over = self._holds.pop((held.job.id, closed.attempt), [])
        for hold in over:
            budget = self._budgets.get(hold.budget)
            if budget is None:  # removed meanwhile
                continue
            spent = 0 if closed.free else _in(budget, closed.cost, hold.amount)
            if spent > hold.amount:
                log.warning(
                    "A call cost more than its bound", job_id=held.job.id, budget=budget.id,
                    bound=money(hold.amount), cost=money(spent),
                )  # fmt: skip
            self._add(hold.budget, hold.since, reserved=-hold.amount, spent=spent)
        if closed.free or closed.again or self._ledger.local(held.job.task):
            return over
        counted = {hold.budget for hold in over}
        for budget in list(self._mine(held)):  # made while the call was under way
            if budget.id not in counted:
                spent = _in(budget, closed.cost, budget.per_call)
                self._add(budget.id, budget.since, spent=spent)
        return over

    def _add(self, id: str, since: str, *, reserved: int = 0, spent: int = 0) -> None:
        """To the period in which it was set aside; one that is over counts no more."""
        budget = self._budgets.get(id)
        if budget is not None and budget.since == since:
            left = max(0, budget.reserved + reserved)
            self._budgets[id] = replace(budget, reserved=left, spent=budget.spent + spent)

    def _mine(self, held: Held) -> Iterator[Budget]:
        return (self._budgets[id] for id in self._ids(held) if id in self._budgets)

    def _ids(self, held: Held) -> Iterator[str]:
        tenant = held.job.tenant
        yield from self._known.get((tenant, ""), ())
        if any(tag for of, tag in self._known if of == tenant):
            for tag in held.beside.tags:
                yield from self._known.get((tenant, tag), ())


def _in(budget: Budget, cost: Cost | None, otherwise: int) -> int:
    """The cost in the budget's own currency; there is no rate of exchange."""
    if cost is None or cost.currency != budget.currency:
        return otherwise
    amount = amount_from(cost.amount)
    return otherwise if amount is None else steps(amount)


def _said(budget: Budget, need: int) -> str:
    """Why the call is not made."""
    return (
        f"{budget.name[0].upper()}{budget.name[1:]} has no room: {money(budget.spent)}"
        f" {budget.currency} is spent, and this call may cost up to {money(need)}."
    )
