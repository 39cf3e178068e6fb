"""The server and the simulated provider, in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentflow.app import AgentFlow, standalone
from agentflow.settings import load_settings
from agentflow.testing.simulated import simulated_replicate
from agentflow.testing.simulator import HOST, Stats
from agentflow.web.guard import LocalOnly
from agentflow.web.listening import Listening, bind

POLL_AFTER = 2.0
"""Seconds to the first look after a webhook; a minute would be right for work that costs money,
and too long for a demo."""


@dataclass(frozen=True, slots=True)
class Stage:
    """`stats` are the simulator's own counters, live."""

    url: str
    stats: Stats


@contextmanager
def stage(data: Path) -> Iterator[Stage]:
    """Everything runs while the block does. Raises what starting it raises."""
    ready: Future[tuple[Stage, Listening, asyncio.AbstractEventLoop]] = Future()

    def main() -> None:
        try:
            asyncio.run(_play(data, ready))
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=main, name="agentflow-demo", daemon=True)
    thread.start()
    built, server, loop = ready.result()
    try:
        yield built
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join(timeout=10)


async def _play(
    data: Path, ready: Future[tuple[Stage, Listening, asyncio.AbstractEventLoop]]
) -> None:
    async with simulated_replicate() as sim:
        listener = bind(HOST, 0)
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        settings = load_settings(
            data_dir=data, host=HOST, port=listener.getsockname()[1], public_url=url, grace=0.5
        )
        app = AgentFlow(
            plugins=["replicate"],
            policies={"replicate.predict": {"poll_after_webhook": POLL_AFTER}},
            settings=settings,
        )
        async with app.lifespan():
            server = Listening(LocalOnly(standalone(app)))
            async with server.serving(listener):
                ready.set_result((Stage(url, sim.stats), server, asyncio.get_running_loop()))
