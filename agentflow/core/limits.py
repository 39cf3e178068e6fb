"""How much of a provider may be used at once, and what one call needs of it.

A `Limit` is what a plugin or an operator declares. A `Demand` is what follows from all limits for
one call: the keys it may be made with, and for each of them the bounds that must have room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

Rate: TypeAlias = tuple[int, float]
"""So many calls in so many seconds, whenever these begin."""

By: TypeAlias = str | Callable[[Any], str | None]

ROOM = 32
"""Messages of one provider that wait in one worker while a limit binds."""

SECONDS_AHEAD = 4.0
"""How much work of a limited provider lies in the broker: enough to keep the workers busy, and
little enough that a tenant who comes later is soon served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Calls in a time (`rate="50/second;2000/minute"`) and calls at the same time (`concurrent`).

    Each of the provider's keys has the limit to itself; `across_keys` makes it one for all of them
    together. With `by`, the name of a field of the input or a function of the input, each value of
    it (each model) has the limit to itself; with `of`, only this value has it. A limit with
    nothing but `by` tells apart whom a `Retry-After` holds up.
    """

    rate: str | None = None
    concurrent: int | None = None
    by: By | None = None
    of: str | None = None
    across_keys: bool = False

    def __post_init__(self) -> None:
        """Raises `ValueError`; the notation of the rate is read where `rates` is asked for."""
        if self.concurrent is not None and not self.concurrent >= 1:
            raise ValueError("concurrent is at least 1")
        if self.of is not None and self.by is None:
            raise ValueError("of is a value of what by names")
        if self.rate is None and self.concurrent is None and self.by is None:
            raise ValueError("a limit says rate, concurrent or by")

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Raises `ValueError` for what is no rate."""
        return () if self.rate is None else parsed(self.rate)

    def value(self, input: Any) -> str | None:
        """What `by` finds in the input; None if that is no text, or the function raises."""
        try:
            if callable(self.by):
                found = self.by(input)
            else:
                found = input.get(self.by) if isinstance(input, dict) else None
        except Exception:  # the plugin's code, before anybody has checked the input
            return None
        return found if isinstance(found, str) else None


@lru_cache(maxsize=256)
def parsed(rate: str) -> tuple[Rate, ...]:
    """`50/second;2000/minute` as amounts and seconds, in the notation of the library `limits`."""
    from limits import parse_many  # takes a tenth of a second, and limits are seldom

    try:
        items = parse_many(rate)
    except ValueError:
        raise ValueError(f"{rate!r} is no rate; one is 50/second;2000/minute") from None
    if any(item.amount < 1 for item in items):
        raise ValueError(f"{rate!r} admits nothing")
    return tuple((item.amount, float(item.get_expiry())) for item in items)


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit as it holds for one call. Calls with bounds of the same `name` share it; `label`
    is the name for metrics, without keys and values."""

    name: str
    label: str
    concurrent: int | None = None
    rates: tuple[Rate, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """The call made with one key: `account` is its fingerprint, None where there are no keys.

    `pauses` are the names under which the provider may have asked for a rest; a further 429 is
    noted under the last.
    """

    account: str | None
    bounds: tuple[Bound, ...]
    pauses: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """What one call needs: room in all bounds of one of its options. Calls of the same `name`
    wait in the same line."""

    name: str
    provider: str
    options: tuple[Option, ...]

    @property
    def limited(self) -> bool:
        """Whether anything but a pause can hold it up."""
        return any(option.bounds for option in self.options)


Target: TypeAlias = tuple[str, Sequence[Limit]]
"""A provider or a task, and its limits."""


def demand(
    provider: str, targets: Sequence[Target], values: Sequence[str | None], accounts: Sequence[str]
) -> Demand:
    """`values` are what the `by`s of all these limits found, in order."""
    keys: Sequence[str | None] = accounts or (None,)
    options = tuple(_option(provider, targets, values, account) for account in keys)
    where = "/".join(target for target, limits in targets if limits) or provider
    return Demand("|".join([where, *(_word(v) for v in values)]), provider, options)


def _option(
    provider: str, targets: Sequence[Target], values: Sequence[str | None], account: str | None
) -> Option:
    bounds: list[Bound] = []
    base = f"{provider}/{account or '-'}"
    pauses, given = [base], iter(values)
    for target, limits in targets:
        for place, limit in enumerate(limits):
            value = next(given)
            if limit.by is not None and limit.of is None and value is not None:
                pauses.append(f"{base}/{_word(value)}")
            if limit.of not in (None, value) or (limit.rate, limit.concurrent) == (None, None):
                continue
            whose = "*" if limit.across_keys else account or "-"
            name = f"{target}/{whose}/{place}/{_word(value)}"
            bounds.append(Bound(name, label_of(target, limit), limit.concurrent, limit.rates))
    return Option(account, tuple(bounds), tuple(dict.fromkeys(pauses)))


def label_of(target: str, limit: Limit) -> str:
    """`openai`, or `openai/model` for a limit of each model."""
    if limit.by is None:
        return target
    return f"{target}/{limit.by if isinstance(limit.by, str) else 'by'}"


_PLAIN = re.compile(r"[\w.:@+-]{1,64}(/[\w.:@+-]{1,64})?", re.ASCII)


def _word(value: str | None) -> str:
    """The value as part of a name: itself where it is short and plain, else its digest."""
    if value is None:
        return ""
    if _PLAIN.fullmatch(value):
        return value
    import hashlib

    return "#" + hashlib.sha256(value.encode(errors="replace")).hexdigest()[:20]


def depth(limits: Sequence[Limit], accounts: int, most: int) -> int:
    """How many calls of a provider with these limits should lie in the broker, `most` at most.

    What is limited by model alone has no depth of its own: how many models there are is unknown.
    """
    depths = [float(most)]
    for limit in limits:
        if limit.by is not None:
            depths.append(max(200.0, ROOM))
            continue
        keys = 1 if limit.across_keys else max(1, accounts)
        if limit.rates:
            slowest = min(amount / seconds for amount, seconds in limit.rates)
            depths.append(SECONDS_AHEAD * slowest * keys + 8)
        if limit.concurrent is not None:
            depths.append(6.0 * limit.concurrent * keys + 16)
    return int(min(depths))
