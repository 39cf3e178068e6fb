"""Permits: who may call a provider now, within its limits. In one process; see `redis_permits`.

A permit is taken for one call and given back at its end. Those who are refused ask again; who
asked first is served first, line by line.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agentflow.core.limits import Bound, Demand, Option

ASK_EVERY = 0.25
"""The longest time between two questions of a line that waits."""

BEGINS = 0.05
"""Seconds in which a call that is permitted has mostly begun."""

FRESH = 1.5
"""Seconds without a question after which a line has left the queue."""

LONGEST_PAUSE = 300.0
"""A `Retry-After` holds the others up for so many seconds at most; then somebody tries again."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Ask again after `wait` seconds."""

    wait: float


class Ledger(Protocol):
    """Where the permits of a limit are counted."""

    freed: Callable[[str | None], None]
    """Called with the name of a line that should ask again; None for all."""

    async def take(self, line: str, permit: str, demand: Demand) -> Option | Refused:
        """Room in all bounds of one option, or in none. A line that asks keeps its place."""

    def started(self, permit: str, option: Option) -> None:
        """The call begins: its time is counted from now."""

    def give_back(self, permit: str, option: Option, *, used: bool) -> None:
        """The call has ended, or (not `used`) was never made."""

    def pause(self, name: str, seconds: float) -> None:
        """The provider asks for a rest."""

    def paused(self, name: str) -> float:
        """For how many seconds yet, as far as known here; 0 for not."""


@dataclass(slots=True)
class _Counted:
    """What there is of one bound."""

    held: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    """Permits whose call has not begun: they count in every window."""
    begun: list[float] = field(default_factory=list)
    """When calls began, in order."""
    waiting: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """The lines in the order of their first question, with the time of their last."""


class LocalLedger:
    """For the one worker of this process. `now` tells the time in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._counted: defaultdict[str, _Counted] = defaultdict(_Counted)
        self._pauses: dict[str, float] = {}
        self.freed: Callable[[str | None], None] = lambda _: None

    async def take(self, line: str, permit: str, demand: Demand) -> Option | Refused:
        now, soonest = self._now(), float("inf")
        for option in turned(demand.options):
            wait = self._wait(line, option, now)
            if wait is None:
                self._admit(permit, option)
                self._leave(line, demand.options)
                return option
            soonest = min(soonest, wait)
        return Refused(min(max(soonest, 0.001), ASK_EVERY))

    def started(self, permit: str, option: Option) -> None:
        for bound in option.bounds:
            if bound.rates:
                counted = self._counted[bound.name]
                counted.pending.discard(permit)
                insort(counted.begun, self._now())

    def give_back(self, permit: str, option: Option, *, used: bool) -> None:  # noqa: ARG002
        for bound in option.bounds:
            counted = self._counted[bound.name]
            counted.held.discard(permit)
            counted.pending.discard(permit)
        if option.bounds:
            self.freed(None)

    def pause(self, name: str, seconds: float) -> None:
        now = self._now()
        until = now + min(seconds, LONGEST_PAUSE)
        self._pauses = {n: t for n, t in self._pauses.items() if t > now}
        self._pauses[name] = max(until, self._pauses.get(name, 0.0))

    def paused(self, name: str) -> float:
        return max(0.0, self._pauses.get(name, 0.0) - self._now())

    def _wait(self, line: str, option: Option, now: float) -> float | None:
        """Seconds until it is worth asking again; None if there is room."""
        paused = max(map(self.paused, option.pauses), default=0.0)
        if paused > 0:
            self._leave(line, (option,))
            return paused
        waits: list[float] = []
        for bound in option.bounds:
            counted = self._counted[bound.name]
            ahead = _ahead(counted, line, now)
            wait = _full(bound, counted, ahead, now)
            if wait is not None:
                counted.waiting[line] = now
                waits.append(wait)
            else:  # what holds this line up is another bound: let others pass
                counted.waiting.pop(line, None)
        return max(waits) if waits else None

    def _admit(self, permit: str, option: Option) -> None:
        for bound in option.bounds:
            counted = self._counted[bound.name]
            if bound.concurrent is not None:
                counted.held.add(permit)
            if bound.rates:
                counted.pending.add(permit)

    def _leave(self, line: str, options: Sequence[Option]) -> None:
        for option in options:
            for bound in option.bounds:
                self._counted[bound.name].waiting.pop(line, None)


def _ahead(counted: _Counted, line: str, now: float) -> int:
    """How many lines asked before this one and still ask."""
    gone = [other for other, asked in counted.waiting.items() if asked < now - FRESH]
    for other in gone:
        del counted.waiting[other]
    lines = list(counted.waiting)
    return lines.index(line) if line in counted.waiting else len(lines)


def _full(bound: Bound, counted: _Counted, ahead: int, now: float) -> float | None:
    """None if there is room for those ahead and one more, else seconds until there may be."""
    wait: float | None = None
    if bound.concurrent is not None and len(counted.held) + ahead >= bound.concurrent:
        wait = ASK_EVERY
    if not bound.rates:
        return wait
    longest = max(seconds for _, seconds in bound.rates)
    del counted.begun[: bisect_right(counted.begun, now - longest)]
    for amount, seconds in bound.rates:
        first = bisect_right(counted.begun, now - seconds)
        spare = amount - ahead - len(counted.pending) - (len(counted.begun) - first)
        if spare > 0:
            continue
        leaves = first - spare  # its leaving makes room, unless others are still to begin
        known = leaves < len(counted.begun)
        wait = max(wait or 0.0, counted.begun[leaves] + seconds - now if known else BEGINS)
    return wait


def turned(options: tuple[Option, ...]) -> tuple[Option, ...]:
    """Beginning with another one each time, so that all keys are used alike."""
    first = random.randrange(len(options))
    return options[first:] + options[:first]
