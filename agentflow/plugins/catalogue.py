"""What this process can do: providers with their settings read and their keys checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings

from agentflow.core.limits import Limit
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
    artifact_hosts: Sequence[str] | None = None
    prices: Sequence[Price] = ()

    def settings_of(self, account: str | None) -> Any:
        """The settings with the key of this account; with the first, if it is there no more."""
        first = next(iter(self.accounts.values()), self.settings)
        return first if account is None else self.accounts.get(account, first)


class Catalogue:
    """Every provider and task by name. `problems` holds what was left out, and why."""

    def __init__(
        self, plugins: Iterable[Plugin], own: Iterable[Provider] = (), public_url: str | None = None
    ) -> None:
        self.plugins = list(plugins)
        self.public_url = public_url
        self.providers: dict[str, Ready] = {}
        self.contributors: dict[str, str] = {}
        """Whom each provider is from, in words."""
        self.tasks: dict[str, Task[Any]] = {}
        self.prices = Prices()
        self.problems: dict[str, str] = {p.label: p.problem for p in self.plugins if p.problem}
        """By the label of the plugin, why it is left out, or what of it."""
        self.misconduct: dict[str, str] = {}
        """By task, what its functions did that hurts others."""
        for provider in own:
            self.add(provider)
        given = [(plugin, provider) for plugin in self.plugins for provider in plugin.providers]
        for plugin, provider in sorted(given, key=lambda pair: pair[0].name != pair[1].name):
            try:  # whose name it is comes first: no other plugin takes it away by the alphabet
                self._take(provider, patiently(partial(_ready, provider)), str(plugin))
            except (PluginError, SettingsError) as error:
                before = self.problems.get(plugin.label)
                self.problems[plugin.label] = f"{before}; {error}" if before else str(error)

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
        self._take(provider, _ready(provider), "the application itself")

    def _take(self, provider: Provider, ready: Ready, contributor: str) -> None:
        if provider.name in self.providers:
            first = self.contributors[provider.name]
            raise PluginError(f"provider {provider.name} is there already, from {first}")
        self.providers[provider.name] = ready
        self.contributors[provider.name] = contributor
        self.tasks.update(provider.tasks)
        theirs = [replace(p, task=f"{provider.name}.{p.task}") for p in ready.prices]
        self.prices = replace(self.prices, plugins=(*self.prices.plugins, *theirs))


def _check_limits(provider: Provider) -> None:
    """A rate is read when it is needed first, which is here. Raises `PluginError`."""
    declared = {provider.name: provider.limits}
    declared |= {task.name: task.limits for task in provider.tasks.values()}
    for name, limits in declared.items():
        for limit in limits:
            if not isinstance(limit, Limit):
                raise PluginError(f"limits of {name}: {limit!r} is no Limit")
            try:
                _ = limit.rates
            except ValueError as error:
                raise PluginError(f"limits of {name}: {error}") from None


def _ready(provider: Provider) -> Ready:
    """All that the plugin's code says at the start, asked for and looked at: from here on only its
    tasks' functions, its parser and its translator run. Raises `PluginError`, `SettingsError`."""
    settings = _settings(provider)
    _check_limits(provider)
    ready = Ready(
        provider,
        settings,
        accounts=_accounts(provider, settings),
        artifact_hosts=_hosts(provider, settings),
        prices=_prices(provider, settings),
    )
    if provider.scheme is None:
        return ready
    try:
        verifier = provider.scheme.verifier(settings)
        verifier.check()
    except SettingsError as error:
        said = _variable(provider, settings) + error.message
        return replace(ready, webhook_problem=said)
    except Exception as error:  # the scheme is the plugin's: its tasks work without webhooks
        return replace(ready, webhook_problem=f"its scheme raised {spoken(error)}")
    return replace(ready, verifier=verifier)


def _variable(provider: Provider, settings: Any) -> str:
    """`ACME_WEBHOOK_SECRET: ` where the scheme says which setting holds its keys, and the settings
    are of variables of their own."""
    name = getattr(provider.scheme, "secret", None)
    if not isinstance(name, str) or not isinstance(settings, BaseSettings):
        return ""
    field = type(settings).model_fields.get(name)
    if field is None or field.validation_alias is not None:
        return ""
    return f"{settings.model_config.get('env_prefix', '')}{name}: ".upper()


def _hosts(provider: Provider, settings: Any) -> Sequence[str] | None:
    given: Any = provider.artifact_hosts
    hosts = given(settings) if callable(given) else given
    if hosts is None:
        return None
    if isinstance(hosts, str) or not all(isinstance(host, str) for host in hosts):
        raise PluginError(f"provider {provider.name}: artifact_hosts is no list of hosts")
    return tuple(hosts)


def _prices(provider: Provider, settings: Any) -> Sequence[Price]:
    given: Any = provider.prices
    prices = tuple(given(settings) if callable(given) else given)
    for price in prices:
        if not isinstance(price, Price):
            raise PluginError(
                f"provider {provider.name}: prices holds {price!r}, which is no Price"
            )
    return prices


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
