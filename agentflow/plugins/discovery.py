"""Finding plugins: entry points of the group `agentflow`, each on its own feet.

One that cannot be imported, breaks the contract, clashes with another or does not come back is
reported and left out; the rest runs.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from agentflow.core.providers import Provider
from agentflow.errors import PluginError, SettingsError
from agentflow.plugins import hookspecs
from agentflow.plugins.checking import check_provider
from agentflow.plugins.patience import patiently

GROUP = "agentflow"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin as found: its distribution and version, and either providers or a problem."""

    name: str
    distribution: str
    version: str
    providers: tuple[Provider, ...] = ()
    problem: str | None = None
    label: str = ""
    """What tells it apart: its name, with the distribution where two bring the same name."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def __str__(self) -> str:
        return f"the plugin {self.name} ({self.distribution} {self.version})"


def discover(only: Sequence[str] | None = None) -> list[Plugin]:
    """The installed plugins, by name; `only` limits them to these names."""
    points = sorted(entry_points(group=GROUP), key=lambda p: (p.name, _home(p)))
    chosen = [point for point in points if only is None or point.name in only]
    often = Counter(point.name for point in chosen)
    return [_load(point, alone=often[point.name] == 1) for point in chosen]


def _home(point: EntryPoint) -> str:
    return (point.dist.name if point.dist else None) or "unknown"


def _load(point: EntryPoint, *, alone: bool) -> Plugin:
    name, distribution = point.name, _home(point)
    version = (point.dist.version if point.dist else None) or "0"
    label = name if alone else f"{name} ({distribution})"
    try:
        providers = patiently(lambda: _providers(point.load(), name))
    except (PluginError, SettingsError) as error:
        return Plugin(name, distribution, version, problem=error.message, label=label)
    return Plugin(name, distribution, version, providers, label=label)


def _providers(module: object, name: str) -> tuple[Provider, ...]:
    """Ask one module's hook. Raises `PluginError` for anything but providers."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=name)
    manager.check_pending()
    given = [p for answer in manager.hook.agentflow_providers() for p in _several(answer, name)]
    if not given:
        raise PluginError(f"plugin {name} contributes no provider")
    for provider in given:
        if not isinstance(provider, Provider):
            raise PluginError(f"plugin {name} gave a {type(provider).__name__}, not a Provider")
        check_provider(provider)
    return tuple(given)


def _several(answer: Any, name: str) -> list[Any]:
    """The providers of one hook's answer."""
    if inspect.iscoroutine(answer):
        answer.close()
        raise PluginError(f"plugin {name}: agentflow_providers is async; say `def`")
    if not isinstance(answer, Iterable) or isinstance(answer, str | bytes):
        raise PluginError(f"plugin {name}: agentflow_providers gave no list of providers")
    return list(answer)
