"""Simulators beside a server in the same process, and the settings that lead to them."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import orjson

from agentflow.errors import SettingsError
from agentflow.settings import names
from agentflow.testing.simulator import Simulator
from agentflow.webhooks.signatures import new_secret

TOKEN = "r8_simulated"


@asynccontextmanager
async def simulated_replicate() -> AsyncIterator[Simulator]:
    """Replicate on loopback while the block runs.

    Sets `REPLICATE_*` in the environment meanwhile, so that no call reaches the real one, and lets
    files be copied from it. Raises `SettingsError` if the plugin is not installed.
    """
    try:
        module = importlib.import_module("agentflow_replicate.simulator")
    except ModuleNotFoundError:
        raise SettingsError(
            "The simulator comes with the Replicate plugin: pip install agentflow-replicate"
        ) from None
    sim: Simulator = module.simulator(new_secret(), TOKEN)
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
