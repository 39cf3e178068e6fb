"""Simulators beside a server in the same process, and the settings that lead to them."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog

from agentflow.errors import PluginError, SettingsError
from agentflow.plugins.discovery import GROUP
from agentflow.plugins.patience import patiently, spoken
from agentflow.settings import names
from agentflow.testing.simulator import Simulator

log = structlog.get_logger(__name__)

PLACE = "simulator"
"""A plugin's simulator is made by the function of this name in its module of this name."""


@asynccontextmanager
async def simulated_replicate() -> AsyncIterator[Simulator]:
    """Replicate on loopback while the block runs.

    Sets `REPLICATE_*` in the environment meanwhile, so that no call reaches the real one, and lets
    files be copied from it. Raises `SettingsError` if the plugin is not installed.
    """
    sim = made("agentflow_replicate")
    if sim is None:
        raise SettingsError("The simulator comes with the plugin: pip install agentflow-replicate")
    async with _served(sim):
        yield sim


@asynccontextmanager
async def simulated_providers() -> AsyncIterator[dict[str, Simulator]]:
    """The same for every installed plugin that has a simulator, by the name of its entry point.
    One that cannot be had is logged and left out. `webhook_url` of each is to be set by who knows
    it. Raises `SettingsError` if there is none."""
    async with AsyncExitStack() as stack:
        sims: dict[str, Simulator] = {}
        for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
            try:
                sim = patiently(partial(made, point.module))
                if sim is not None:
                    sims[point.name] = await stack.enter_async_context(_served(sim))
            except (PluginError, SettingsError) as error:
                log.warning("Simulator left out", plugin=point.name, problem=error.message)
            except Exception as error:  # a stranger's env() and routes()
                log.warning("Simulator left out", plugin=point.name, problem=spoken(error))
        if not sims:
            raise SettingsError("Simulators come with plugins: pip install agentflow-replicate")
        yield sims


def made(package: str) -> Simulator | None:
    """A fresh simulator of the plugin in this package; None where it has none that is made without
    arguments. Raises what the plugin's modules raise, and `PluginError`."""
    name = f"{package}.{PLACE}"
    try:
        make: Any = getattr(import_module(name), PLACE, None)
    except ModuleNotFoundError as error:
        if error.name in (name, package):
            return None
        raise
    if make is None or _asks(make):
        return None
    sim = make()
    if not isinstance(sim, Simulator):
        raise PluginError(f"{name}.{PLACE}() gave a {type(sim).__name__}, not a Simulator")
    return sim


def _asks(function: Any) -> bool:
    """Whether it cannot be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    return False


@asynccontextmanager
async def _served(sim: Simulator) -> AsyncIterator[Simulator]:
    async with sim.serve():
        with environment({**sim.env(), "AGENTFLOW_ALLOW_DOWNLOADS": _allowed(sim.url)}):
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
