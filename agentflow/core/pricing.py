"""What calls cost: dated tables of prices, and amounts that are exact.

Money is a `Decimal` here and a decimal string outside; never a float. What nobody knows is None,
never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal, InvalidOperation, localcontext
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from agentflow.core.results import Cost, Result
from agentflow.types import Json

STEP = Decimal("1E-10")
"""Amounts are multiples of it: a token may cost less than a millionth of a dollar."""
MOST = Decimal(900_000_000)
"""Larger amounts of one call are taken for a mistake; so large a multiple fits 64 bits."""

_CURRENCY = re.compile(r"[A-Z]{3}")
_PRECISION = 60
_WILD = re.compile(r"[*?\[\]]")


@dataclass(frozen=True, slots=True)
class Price:
    """What calls cost from the day `since` on, until a later entry for the same.

    `task` and `model` are patterns (`*` and `?`); the more letters one names, the more it counts.
    `units` are prices per `per` units of what `Result.usage` counts; a call that does not say how
    much of one it used has no known cost. `within` names units that another one includes, as
    `{"cached_input_tokens": "input_tokens"}`, and that may be left out. `call` is added for each
    call. Prices are decimal strings (or Decimals). `source` is where the figure was read. Raises
    `ValueError` for what is no price.
    """

    since: date
    units: Mapping[str, Decimal | str] = field(default_factory=dict)
    model: str = "*"
    task: str = "*"
    per: int = 1
    call: Decimal | str | None = None
    within: Mapping[str, str] = field(default_factory=dict)
    currency: str = "USD"
    source: str = ""

    def __post_init__(self) -> None:
        if not _CURRENCY.fullmatch(self.currency):
            raise ValueError(f"currency {self.currency!r} is no ISO 4217 code, as USD")
        if self.per < 1:
            raise ValueError("per is a number of units, from 1")
        units = {name: _price(name, value) for name, value in self.units.items()}
        object.__setattr__(self, "units", MappingProxyType(units))
        if not units and self.call is None:
            raise ValueError("a price has units or call; what is free says call '0'")
        object.__setattr__(self, "call", _price("call", self.call or Decimal(0)))
        for inner, outer in self.within.items():
            if inner not in units or outer not in units or outer in self.within:
                raise ValueError(f"within: {inner} and {outer} are both in units, one level deep")

    def amount(self, usage: Mapping[str, Any]) -> Decimal | None:
        """What this usage costs; None if it does not say all that counts."""
        with localcontext() as exact:
            exact.prec = _PRECISION
            total = Decimal(self.call or 0)
            for name, price in self.units.items():
                count, outer = _count(usage.get(name)), self.within.get(name)
                if count is None and (outer is None or name in usage):
                    return None
                if count is None:
                    continue
                whole = None if outer is None else _count(usage.get(outer))
                if outer is not None and (whole is None or count > whole):
                    return None  # more of a part than of the whole
                less = Decimal(self.units[outer]) if outer is not None else Decimal(0)
                total += count * (Decimal(price) - less) / self.per
            return _stepped(total, ROUND_HALF_EVEN)

    def most(self, usage: Mapping[str, Any]) -> Decimal | None:
        """What no call costs more than that uses no more than this; None if that is unknown."""
        with localcontext() as exact:
            exact.prec = _PRECISION
            total = Decimal(self.call or 0)
            for name, price in self.units.items():
                if name in self.within:
                    continue
                count = _count(usage.get(name))
                if count is None:
                    return None
                parts = [self.units[part] for part, whole in self.within.items() if whole == name]
                total += count * max(map(Decimal, (price, *parts))) / self.per
            return _stepped(total, ROUND_CEILING)

    @property
    def precision(self) -> int:
        """How many letters its patterns name."""
        return sum(len(_WILD.sub("", pattern)) for pattern in (self.model, self.task))


@dataclass(frozen=True, slots=True)
class Prices:
    """Every price of an installation. `own` are those of the operator, who is asked first."""

    plugins: Sequence[Price] = ()
    own: Sequence[Price] = ()

    def cost(self, task: str, models: Iterable[str], result: Result, at: date) -> Cost | None:
        """What the provider says it cost, or else what the tables make of its usage. `models` are
        the names the model goes by, the most exact first; `at` is the day of the call."""
        told = reported(result.cost)
        return told or self.computed(task, models, result.usage, at)

    def computed(
        self, task: str, models: Iterable[str], usage: Mapping[str, Any], at: date
    ) -> Cost | None:
        price = self.find(task, models, at)
        amount = None if price is None else price.amount(usage)
        if price is None or amount is None:
            return None
        kind = "operator" if price in self.own else "price_table"
        return Cost(written(amount), price.currency, f"{kind}:{price.since.isoformat()}")

    def most(
        self, task: str, models: Iterable[str], usage: Mapping[str, Any], at: date
    ) -> Cost | None:
        """The most a call may cost whose usage is at most this; None if nobody knows."""
        price = self.find(task, models, at)
        amount = None if price is None else price.most(usage)
        if price is None or amount is None:
            return None
        return Cost(written(amount), price.currency, "bound")

    def find(self, task: str, models: Iterable[str], at: date) -> Price | None:
        """The price in force that day: the operator's before a plugin's, then the most exact
        pattern, then the latest. A model without a name is priced by the pattern `*` alone."""
        names = list(models) or [""]
        for table in (self.own, self.plugins):
            for name in names:
                fit = [
                    price
                    for price in table
                    if price.since <= at
                    and fnmatchcase(task, price.task)
                    and fnmatchcase(name, price.model)
                ]
                if fit:
                    return max(fit, key=lambda price: (price.precision, price.since))
        return None

    def has(self, task: str) -> bool:
        """Whether this task may have a price."""
        return any(fnmatchcase(task, price.task) for price in (*self.own, *self.plugins))

    def calls_first(self, task: str, repeatable: bool) -> bool:
        """Whether a worker calls before the writer has granted it. What has a price may be under a
        budget, which has its say with the grant."""
        return repeatable and not self.has(task)


def reported(cost: Cost | None) -> Cost | None:
    """What a plugin passed on, in its exact form; None if that is no amount of money."""
    amount = None if cost is None else amount_from(cost.amount)
    if cost is None or amount is None or not _CURRENCY.fullmatch(str(cost.currency)):
        return None
    return Cost(written(amount), cost.currency, str(cost.source)[:64] or "provider")


def amount_from(text: object) -> Decimal | None:
    """A decimal string as an amount; None for anything else, below 0 or beyond all reason."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    if not value.is_finite():
        return None
    with localcontext() as exact:
        exact.prec = _PRECISION
        return _stepped(value, ROUND_HALF_EVEN)


def written(amount: Decimal) -> str:
    """`0.0042`: no exponent, no zeros at the end."""
    text = f"{amount:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def steps(amount: Decimal) -> int:
    """The amount as databases keep it: how many times `STEP`."""
    return int(amount.scaleb(10).to_integral_value(ROUND_CEILING))


def from_steps(count: int) -> Decimal:
    with localcontext() as exact:
        exact.prec = _PRECISION
        return Decimal(count).scaleb(-10)


def models_of(input: Json, result: Result | None = None) -> list[str]:
    """The names a call's model goes by: as it answered, then as it was asked for."""
    named = [result.output if result is not None else None, input]
    said = [each.get("model") for each in named if isinstance(each, dict)]
    return list(dict.fromkeys(name for name in said if isinstance(name, str) and name))


def _price(name: str, value: object) -> Decimal:
    if isinstance(value, str):
        try:
            value = Decimal(value)
        except InvalidOperation:
            value = None
    if not isinstance(value, Decimal) or not value.is_finite() or not 0 <= value <= MOST:
        raise ValueError(f"{name}: a price is a decimal string from 0, as '0.15'")
    return value


def _count(value: object) -> Decimal | None:
    """A number of units; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    count = Decimal(str(value))
    return count if count.is_finite() and count >= 0 else None


def _stepped(amount: Decimal, rounding: str) -> Decimal | None:
    if not 0 <= amount <= MOST:
        return None
    return amount.quantize(STEP, rounding)
