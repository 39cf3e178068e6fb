"""What this process can do: providers with their settings read and their keys checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import SecretStr, ValidationError

from agentflow.core.pricing import Price, Prices
from agentflow.core.providers import Provider, Task, Verifier
from agentflow.errors import NotFound, PluginError, SettingsError, UsageError
from agentflow.plugins.discovery import Plugin
from agentflow.plugins.patience import patiently, spoken


@dataclass(frozen=True, slots=True)
class Ready:
    """A provider with its settings. `verifier` is None where webhooks cannot be taken, and
    `webhook_problem` says why if they were meant to be."""

    provider: Provider
    settings: Any = None
    verifier: Verifier | None = None
    webhook_problem: str | None = None
    accounts: Mapping[str, Any] = field(default_factory=dict)
    """The settings with one of the keys each, by its fingerprint; empty where there are none."""

    def settings_of(self, account: str | None) -> Any:
        """The settings with the key of this account; with the first, if it is there no more."""
        first = next(iter(self.accounts.values()), self.settings)
        return first if account is None else self.accounts.get(account, first)

    @property
    def artifact_hosts(self) -> Sequence[str] | None:
        hosts = self.provider.artifact_hosts
        return hosts(self.settings) if callable(hosts) else hosts

    @property
    def prices(self) -> Sequence[Price]:
        prices = self.provider.prices
        return prices(self.settings) if callable(prices) else prices


class Catalogue:
    """Every provider and task by name. `problems` holds what was left out, and why."""

    def __init__(
        self, plugins: Iterable[Plugin], own: Iterable[Provider] = (), public_url: str | None = None
    ) -> None:
        self.plugins = list(plugins)
        self.public_url = public_url
        self.providers: dict[str, Ready] = {}
        self.tasks: dict[str, Task[Any]] = {}
        self.prices = Prices()
        self.problems: dict[str, str] = {p.name: p.problem for p in self.plugins if p.problem}
        self.misconduct: dict[str, str] = {}
        """By task, what its functions did that hurts others."""
        for provider in own:
            self.add(provider)
        for plugin in self.plugins:
            for provider in plugin.providers:
                try:
                    self._take(provider, patiently(partial(_ready, provider)))
                except (PluginError, SettingsError) as error:
                    before = self.problems.get(plugin.name)
                    self.problems[plugin.name] = f"{before}; {error}" if before else str(error)

    def adjust(self, policies: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of tasks' policies. Raises `UsageError` for what there is not."""
        for name, changes in policies.items():
            if name not in self.tasks:
                raise UsageError(f"policies: there is no task {name!r}")
            task = self.tasks[name]
            try:
                policy = replace(task.policy, **changes)
            except (TypeError, ValueError) as error:
                raise UsageError(f"policies: {name}: {error}") from None
            self.tasks[name] = replace(task, policy=policy)

    def price(self, own: Sequence[Price]) -> None:
        """Add prices of the operator's, which come before those of the plugins."""
        self.prices = replace(self.prices, own=tuple(own))

    def task(self, name: str) -> Task[Any]:
        """Raises `NotFound`, naming what there is."""
        if name not in self.tasks:
            known = ", ".join(sorted(self.tasks)) or "none: no plugin is installed"
            raise NotFound(f"There is no task {name!r}. Known tasks: {known}")
        return self.tasks[name]

    def provider(self, name: str) -> Ready:
        if name not in self.providers:
            raise NotFound(f"There is no provider {name!r}")
        return self.providers[name]

    def of_task(self, name: str) -> Ready:
        return self.provider(name.split(".", 1)[0])

    def expects_webhooks(self, task: str) -> bool:
        """Whether a webhook about a job of this task can reach us."""
        ready = self.of_task(task)
        return ready.verifier is not None and self.public_url is not None

    def is_account_wide(self, provider: str) -> bool:
        """Whether webhooks of this provider are told apart by its own ids alone."""
        ready = self.providers.get(provider)
        return ready is not None and ready.provider.webhooks == "account"

    def webhook_url(self, task: str, token: str) -> str | None:
        """What a provider with callbacks per request is told; None means polling only."""
        ready = self.of_task(task)
        if ready.provider.webhooks != "per_request" or not self.expects_webhooks(task):
            return None
        return f"{self.public_url}/webhooks/{ready.provider.name}/{token}"

    def add(self, provider: Provider) -> None:
        """Raises `PluginError` for a name that is taken, `SettingsError`."""
        self._take(provider, _ready(provider))

    def _take(self, provider: Provider, ready: Ready) -> None:
        if provider.name in self.providers:
            raise PluginError(f"provider {provider.name} is there already")
        _check_limits(provider)
        self.providers[provider.name] = ready
        self.tasks.update(provider.tasks)
        theirs = [replace(p, task=f"{provider.name}.{p.task}") for p in ready.prices]
        self.prices = replace(self.prices, plugins=(*self.prices.plugins, *theirs))


def _check_limits(provider: Provider) -> None:
    """A rate is read when it is needed first, which is here. Raises `PluginError`."""
    declared = {provider.name: provider.limits}
    declared |= {task.name: task.limits for task in provider.tasks.values()}
    for name, limits in declared.items():
        for limit in limits:
            try:
                _ = limit.rates
            except ValueError as error:
                raise PluginError(f"limits of {name}: {error}") from None


def _ready(provider: Provider) -> Ready:
    settings = _settings(provider)
    accounts = _accounts(provider, settings)
    if provider.scheme is None:
        return Ready(provider, settings, accounts=accounts)
    try:
        verifier = provider.scheme.verifier(settings)
        verifier.check()
    except SettingsError as error:
        return Ready(provider, settings, webhook_problem=error.message, accounts=accounts)
    except Exception as error:  # the scheme is the plugin's: its tasks work without webhooks
        said = f"its scheme raised {spoken(error)}"
        return Ready(provider, settings, webhook_problem=said, accounts=accounts)
    return Ready(provider, settings, verifier, accounts=accounts)


def _accounts(provider: Provider, settings: Any) -> dict[str, Any]:
    """Raises `PluginError` where the keys are no secret."""
    if provider.keys is None:
        return {}
    held = getattr(settings, provider.keys)
    if not isinstance(held, SecretStr):
        raise PluginError(f"provider {provider.name} has its keys in a setting that is no secret")
    keys = held.get_secret_value().replace(",", " ").split()
    return {
        fingerprint(provider.name, key): settings.model_copy(update={provider.keys: SecretStr(key)})
        for key in keys
    }


def fingerprint(provider: str, key: str) -> str:
    """What a key is called in rows, names and logs: nobody gets from it to the key."""
    return hashlib.sha256(f"{provider}:{key}".encode()).hexdigest()[:12]


def _settings(provider: Provider) -> Any:
    if provider.settings is None:
        return None
    try:
        return provider.settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise SettingsError(f"settings of {provider.name}: {wrong}") from None
