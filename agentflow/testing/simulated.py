"""Simulators beside a server in the same process, and the settings that lead to them."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import orjson

from agentflow.errors import SettingsError
from agentflow.settings import names
from agentflow.testing.simulator import Simulator
from agentflow.webhooks.signatures import new_secret

_MAKE: Mapping[str, Callable[[Any], Simulator]] = {
    "replicate": lambda module: module.simulator(new_secret(), "r8_simulated"),
    "openai": lambda module: module.simulator(new_secret(), "sk-simulated"),
    "sendgrid": lambda module: module.simulator("SG.simulated"),
}
"""How to make the simulator in `agentflow_NAME.simulator`."""


@asynccontextmanager
async def simulated_replicate() -> AsyncIterator[Simulator]:
    """Replicate on loopback while the block runs.

    Sets `REPLICATE_*` in the environment meanwhile, so that no call reaches the real one, and lets
    files be copied from it. Raises `SettingsError` if the plugin is not installed.
    """
    async with _simulated("replicate") as sim:
        yield sim


@asynccontextmanager
async def simulated_providers() -> AsyncIterator[dict[str, Simulator]]:
    """The same for every plugin here that has a simulator, by provider. `webhook_url` of each is
    to be set by who knows it. Raises `SettingsError` if none is installed."""
    there = [name for name in _MAKE if find_spec(f"agentflow_{name}") is not None]
    if not there:
        raise SettingsError("The simulators come with the plugins: pip install agentflow-replicate")
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(_simulated(name)) for name in there}


@asynccontextmanager
async def _simulated(name: str) -> AsyncIterator[Simulator]:
    try:
        module = importlib.import_module(f"agentflow_{name}.simulator")
    except ModuleNotFoundError:
        raise SettingsError(
            f"The simulator comes with the plugin: pip install agentflow-{name}"
        ) from None
    sim = _MAKE[name](module)
    async with sim.serve():
        with environment({**module.env(sim), "AGENTFLOW_ALLOW_DOWNLOADS": _allowed(sim.url)}):
            yield sim


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the time of the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _allowed(url: str) -> str:
    """The addresses files may be copied from, and this one."""
    allowed = names(os.environ.get("AGENTFLOW_ALLOW_DOWNLOADS", ""))
    return orjson.dumps([*allowed, urlsplit(url).netloc]).decode()
