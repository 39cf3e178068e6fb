"""What calls came to in money: facts are priced before they are decided on, and each call that
may have been billed is booked when it has ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

from agentflow.core.events import Abandoned, Event, Failed, Succeeded
from agentflow.core.job import Job, Status
from agentflow.core.pricing import Prices, models_of, reported
from agentflow.core.results import Cost, Result
from agentflow.errors import ErrorKind
from agentflow.plugins.catalogue import Catalogue
from agentflow.store.usage import Ended
from agentflow.types import Json
from agentflow.writer.loading import Beside

MOST_UNITS = 50

_TURNED_AWAY = frozenset(
    {
        ErrorKind.INVALID_INPUT,
        ErrorKind.AUTHENTICATION,
        ErrorKind.PERMISSION,
        ErrorKind.QUOTA_EXCEEDED,
        ErrorKind.RATE_LIMITED,
        ErrorKind.TIMEOUT,
        ErrorKind.UNAVAILABLE,
    }
)
"""Errors that say that the call had no effect, if the provider had not taken the work before."""

_SAID_OF_REPEATABLE = frozenset({ErrorKind.TIMEOUT, ErrorKind.UNAVAILABLE})
"""What is said of a repeatable call also where it may have had an effect."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A call that ended. `free`: it was surely not billed. `again`: it was closed before, without
    its outcome being known."""

    attempt: int
    outcome: str
    usage: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost | None = None
    free: bool = False
    again: bool = False


def calls_ended(before: Job, after: Job, event: Event) -> Iterator[Closed]:
    """The calls that this decision ended."""
    unused = isinstance(event, Abandoned) and not event.called
    if unused and after.status is Status.QUEUED:
        yield Closed(before.attempt, "unused", free=True)
    if after.attempt != before.attempt and _called(before, before.attempt):
        yield _closed(before, event, "failed" if after.attempt > before.attempt else "superseded")
    if after.final and not before.final:
        if after.status is Status.SUCCEEDED and after.result is not None:
            again = after.attempt < len(after.attempts)
            usage, cost = after.result.usage, after.result.cost
            yield Closed(after.attempt, after.status.value, usage, cost, again=again)
        elif _called(after, after.attempt):
            yield _closed(after, event, after.status.value)


def _called(job: Job, number: int) -> bool:
    attempt = job.numbered(number)
    return attempt is not None and bool(attempt.nonce or attempt.external_id)


def _closed(job: Job, event: Event, outcome: str) -> Closed:
    """The attempt in charge of `job`, without a result."""
    number, accepted = job.attempt, job.current.external_id is not None
    match event:
        case Failed(attempt=about, error=error) if about == number:
            unsure = job.policy.repeatable and error.kind in _SAID_OF_REPEATABLE
            free = error.kind in _TURNED_AWAY and not (accepted or unsure or event.usage)
            free = free and event.cost is None
            return Closed(number, outcome, event.usage or {}, event.cost, free=free)
        case Abandoned(called=False):
            return Closed(number, outcome, free=not accepted)
        case _:
            return Closed(number, outcome)


class Ledger:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def priced(self, job: Job, beside: Beside, event: Event, now: datetime) -> Event:
        """The event with what the call cost: as the provider says, else by the prices of the day
        it was granted."""
        match event:
            case Succeeded(result=result) if result.cost or self._prices.has(job.task):
                names = self.names(job.task, beside.input, result)
                cost = self._prices.cost(job.task, names, result, _day(job, event.attempt, now))
                return event if cost == result.cost else with_cost(event, cost)
            case Failed(usage=usage) if event.cost or usage:
                names = self.names(job.task, beside.input)
                day = _day(job, event.attempt, now)
                cost = reported(event.cost) or (
                    self._prices.computed(job.task, names, usage, day) if usage else None
                )
                return replace(event, cost=cost)
            case _:
                return event

    def bound(self, task: str, input: Json, now: datetime) -> Cost | None:
        """The most a call may cost; None if nobody knows."""
        known = self._catalogue.tasks.get(task)
        usage = known.bound(input) if known is not None else {}
        return self._prices.most(task, self.names(task, input), usage, now.date())

    def local(self, task: str) -> bool:
        """Whether this is code of our own, which nobody bills."""
        ready = self._catalogue.providers.get(task.partition(".")[0])
        return ready is not None and ready.provider.local

    def calls_first(self, job: Job) -> bool:
        """Whether the call was made before it was asked for."""
        return self._prices.calls_first(job.task, job.policy.repeatable)

    def entry(self, job: Job, beside: Beside, closed: Closed, now: datetime) -> Ended | None:
        """The line for a call; None for one that nobody bills."""
        if closed.free or (self.local(job.task) and not (closed.cost or closed.usage)):
            return None
        result = job.result if closed.outcome == Status.SUCCEEDED else None
        names = self.names(job.task, beside.input, result)
        return Ended(
            job.id, closed.attempt, job.tenant, job.task, names[0][:200] if names else None,
            closed.outcome, units(closed.usage), closed.cost, beside.tags, now,
        )  # fmt: skip

    def names(self, task: str, input: Json, result: Result | None = None) -> Sequence[str]:
        """What prices are looked up by; a plugin that cannot say says nothing."""
        ready = self._catalogue.providers.get(task.partition(".")[0])
        namer = models_of if ready is None else ready.provider.namer
        try:
            return [str(name) for name in namer(input, result) if name]
        except Exception:  # a stranger's code: then no model is known
            return []

    @property
    def _prices(self) -> Prices:
        return self._catalogue.prices


def with_cost(event: Succeeded, cost: Cost | None) -> Succeeded:
    return replace(event, result=replace(event.result, cost=cost))


def units(usage: Mapping[str, Any]) -> dict[str, float]:
    """Only what is a number, and not more of it than anybody reads."""
    good = {
        str(name)[:64]: value
        for name, value in usage.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return dict(list(good.items())[:MOST_UNITS])


def _day(job: Job, number: int, now: datetime) -> date:
    attempt = job.numbered(number)
    return ((attempt.started_at if attempt else None) or now).date()
