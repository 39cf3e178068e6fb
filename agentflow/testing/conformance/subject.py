"""What the author of a plugin says about it, and what the checks make of that."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar

import pytest

from agentflow.core.providers import Provider, Task
from agentflow.errors import SettingsError
from agentflow.plugins.catalogue import Catalogue, Ready
from agentflow.testing.conformance.attempts import Attempts
from agentflow.testing.conformance.making import made
from agentflow.testing.conformance.order import Order
from agentflow.testing.conformance.world import World, world
from agentflow.testing.simulated import environment
from agentflow.testing.simulator import Simulator

STATUSES: Mapping[int, frozenset[str]] = {
    400: frozenset({"invalid_input"}),
    401: frozenset({"authentication"}),
    402: frozenset({"quota_exceeded"}),
    403: frozenset({"permission"}),
    408: frozenset({"outcome_unknown"}),
    422: frozenset({"invalid_input"}),
    429: frozenset({"rate_limited"}),
    500: frozenset({"outcome_unknown", "unavailable"}),
    502: frozenset({"outcome_unknown"}),
    504: frozenset({"outcome_unknown"}),
}


_WHY_NONE = {
    "late": "no order says later=True",
    "slow": "no order with slow= is of a task that has @task.cancel",
}


class Subject:
    """The attributes to set. The first three are needed."""

    provider: ClassVar[Provider]
    """What the plugin contributes; see `provided`."""
    simulator: ClassVar[Callable[[], Simulator]]
    """Makes a fresh simulator of it: its class, or `staticmethod(lambda: …)`. Its `env()` gives the
    variables that lead to it; its creates go through `faulty`, its webhooks through `outbox`."""
    orders: ClassVar[Sequence[Order]]
    """At least one for each task."""
    errors: ClassVar[Sequence[str]] = ()
    """Modules whose exceptions the plugin translates: its SDK's, its HTTP client's."""
    error_kinds: ClassVar[Mapping[str, str]] = {}
    """What the SDK's exceptions come to: `{"acme.Overloaded": "unavailable"}`, package and class.
    Of a package that is named once, every exception in `errors` must be: one without a row of its
    own in the table is judged by the row of its base, and nobody has looked at it."""
    statuses: ClassVar[Mapping[int, frozenset[str]]] = STATUSES
    """The kinds of error that an HTTP status of the provider may come to."""
    webhook_setting: ClassVar[str | None] = None
    """The environment variable with the webhook keys; several stand there with spaces between."""
    tolerance: ClassVar[float | None] = 300.0
    """Seconds a signature may be old; None if the scheme signs no time."""
    signs_body: ClassVar[bool] = True
    """False if a webhook proves by a secret alone who sends it."""

    def sdk_error(self, cls: type[Exception]) -> Exception | None:
        """An instance of an exception in `errors`; None leaves the class out. By default it is made
        by its parameters' names, with an HTTP answer 500 where it wants one."""
        return made(cls)

    def provided(self) -> Provider:
        """The provider by the variables in force, for a plugin whose providers are made of them:
        what its hook gives. `provider` is then an example to be read."""
        return self.provider

    def secrets(self, sim: Simulator) -> dict[str, str]:
        """The variables of `env()` that hold secrets: those the settings keep as such."""
        kind = self.provider.settings
        if kind is None:
            return {}
        prefix = str(kind.model_config.get("env_prefix", ""))
        found = (n for n, f in kind.model_fields.items() if "SecretStr" in str(f.annotation))
        names = {f"{prefix}{name}".upper() for name in found}
        return {name: value for name, value in sim.env().items() if name in names}

    # -- what the checks use ---------------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A check with the argument `order` runs for each, one with `late` for those that end
        later, one with `slow` for those that can be canceled."""
        chosen: dict[str, list[Any]] = {
            "order": list(self.orders),
            "late": [o for o in self.orders if o.later],
            "slow": [o for o in self.orders if o.slow is not None and self.task(o).canceler],
            "status": sorted(self.statuses),
        }
        for name, values in chosen.items():
            if name in metafunc.fixturenames:
                why = _WHY_NONE.get(name, f"no order is {name}")
                none = [pytest.param(None, marks=pytest.mark.skip(why))]
                metafunc.parametrize(name, values or none, ids=str)

    def task(self, order: Order) -> Task[Any]:
        full = f"{self.provider.name}.{order.task}"
        assert full in self.provider.tasks, f"orders: there is no task {order.task!r}"
        return self.provider.tasks[full]

    @property
    def takes_webhooks(self) -> bool:
        return self.provider.webhooks != "none"

    def needs_webhooks(self) -> None:
        if not self.takes_webhooks:
            pytest.skip("the provider sends no webhooks")

    def make(self) -> Simulator:
        sim = type(self).simulator()
        sim.url = sim.url or "http://127.0.0.1:9"  # where it is not served, nobody listens
        return sim

    @asynccontextmanager
    async def world(self, **options: Any) -> AsyncIterator[World]:
        """The whole application on loopback, with a fresh simulator; see `world`."""
        async with world(self.provided, self.make(), **options) as one:
            yield one

    @asynccontextmanager
    async def attempts(
        self, sim: Simulator | None = None, **variables: str
    ) -> AsyncIterator[Attempts]:
        """Calls of the task's functions alone, against a served simulator."""
        sim = sim or self.make()
        async with sim.serve():
            sim.webhook_url = f"{sim.url}/nobody"
            with self.settings(sim, variables) as ready:
                one = Attempts(ready, sim)
                try:
                    yield one
                finally:
                    await one.close()

    @asynccontextmanager
    async def attempts_on(self, world: World) -> AsyncIterator[Attempts]:
        """The same against the simulator of a world, whose settings are in force."""
        one = Attempts(world.ready, world.sim)
        try:
            yield one
        finally:
            await one.close()

    @contextmanager
    def settings(self, sim: Simulator, variables: Mapping[str, str] | None = None) -> Iterator[Any]:
        """The provider with the settings that lead to the simulator, some of them changed."""
        with environment({**sim.env(), **(variables or {})}):
            yield self.ready()

    def ready(self) -> Ready:
        try:
            provider = self.provided()
            return Catalogue([], [provider], "http://127.0.0.1:9").provider(provider.name)
        except SettingsError as error:
            raise AssertionError(f"env() of the simulator does not fit: {error}") from None

    @contextmanager
    def bare(self) -> Iterator[None]:
        """An environment without any variable of the plugin's."""
        prefix = str((self.provider.settings or _None).model_config.get("env_prefix", "")).upper()
        hidden = {n: v for n, v in os.environ.items() if prefix and n.upper().startswith(prefix)}
        for name in hidden:
            del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(hidden)


class _None:
    model_config: ClassVar[dict[str, Any]] = {}
