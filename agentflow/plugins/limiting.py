"""The limits in force: what plugins declare, unless the application or an operator overrides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeAlias

from agentflow.core.limits import Demand, Limit, demand, depth, label_of
from agentflow.core.providers import several
from agentflow.errors import NotFound, UsageError
from agentflow.plugins.catalogue import Catalogue
from agentflow.types import Json

Given: TypeAlias = Mapping[str, Any]
"""By provider or task: a `Limit` or several, or the same as JSON; None or [] for no limit."""

_FIELDS = frozenset(f.name for f in fields(Limit))


class Limits:
    """Of every provider and task in the catalogue. What is given for a name takes the place of what
    its plugin declares; later ones come before earlier ones."""

    def __init__(self, catalogue: Catalogue, *given: Given) -> None:
        """Raises `UsageError` for what is no limit, or for a name that nothing has."""
        self._catalogue = catalogue
        self._given: dict[str, tuple[Limit, ...]] = {}
        for each in given:
            self._given |= {name: read(name, said) for name, said in each.items()}
        for name in self._given.keys() - catalogue.tasks.keys() - catalogue.providers.keys():
            if not catalogue.problems:  # a plugin that was left out has limits too
                raise UsageError(f"limits: there is no provider or task {name!r}")
        self.demand = lru_cache(maxsize=4096)(self._demand)

    def of(self, name: str) -> tuple[Limit, ...]:
        """Of a provider or of a task alone."""
        if name in self._given:
            return self._given[name]
        if name in self._catalogue.providers:
            return self._catalogue.providers[name].provider.limits
        try:
            return self._catalogue.task(name).limits
        except NotFound:
            return ()

    def for_call(self, task: str, input: Json) -> Demand:
        """What a call of this task with this input needs."""
        provider = task.partition(".")[0]
        limits = (*self.of(provider), *self.of(task))
        return self.demand(task, tuple(each.value(input) for each in limits))

    def depth(self, provider: str, most: int) -> int:
        """How many of its calls should lie in the broker; see `core.limits.depth`."""
        ready = self._catalogue.providers.get(provider)
        accounts = 0 if ready is None else len(ready.accounts)
        return depth(self.of(provider), accounts, most)

    def labels(self) -> Sequence[str]:
        """The names of all limits, for metrics."""
        names = [*self._catalogue.providers, *self._catalogue.tasks]
        limits = [(name, limit) for name in names for limit in self.of(name)]
        return sorted({label_of(name, limit) for name, limit in limits})

    def _demand(self, task: str, values: tuple[str | None, ...]) -> Demand:
        provider = task.partition(".")[0]
        targets = [(name, self.of(name)) for name in (provider, task)]
        ready = self._catalogue.provider(provider)
        return demand(provider, targets, values, list(ready.accounts))


def read(name: str, given: Any) -> tuple[Limit, ...]:
    """What stands for a name. Raises `UsageError`."""
    if given is None:
        return ()
    if isinstance(given, (Limit, Mapping)):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise UsageError(f"limits: {name}: give a limit or a list of them")
    try:
        limits = several([each if isinstance(each, Limit) else _limit(each) for each in given])
        for limit in limits:
            _ = limit.rates
    except (TypeError, ValueError) as error:
        raise UsageError(f"limits: {name}: {error}") from None
    return limits


def _limit(said: Any) -> Limit:
    if not isinstance(said, Mapping):
        raise ValueError(f"{said!r} is no limit")
    if unknown := sorted(said.keys() - _FIELDS):
        raise ValueError(f"a limit has no {unknown[0]!r}, but {', '.join(sorted(_FIELDS))}")
    for name, kind in (("rate", str), ("concurrent", int), ("by", str), ("of", str)):
        value = said.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{name} is no {value!r}")
    return Limit(**said)
