"""A web server in somebody else's process: up for a test, gone without a pause."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn

LOOK = 0.002
"""Seconds between two looks at what cannot be waited for."""

NO_START = "the application does not start; the log says why"


@asynccontextmanager
async def served(
    config: uvicorn.Config, listener: socket.socket | None = None, *, signals: bool = False
) -> AsyncIterator[Guest]:
    """Serve in this event loop, on the listener or where the configuration says, while the block
    runs. `signals`: it takes those of the process meanwhile, by which streams learn of the stop.
    Raises `RuntimeError` if the application does not start."""
    server = Guest(config, signals)
    serving = asyncio.ensure_future(server.serve([listener] if listener else None))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError(NO_START)
            await asyncio.sleep(LOOK)
        yield server
    finally:
        server.leave()
        await serving


class Guest(uvicorn.Server):
    """It ends in order, but as soon as that can be: uvicorn looks ten times a second whether it is
    told to, then whether the clients have gone. The signals may stay with the host."""

    def __init__(self, config: uvicorn.Config, signals: bool) -> None:
        super().__init__(config)
        self._signals = signals
        self._told = asyncio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._told.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals() if self._signals else contextlib.nullcontext():
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # it would end the host
            raise RuntimeError(NO_START) from None

    async def main_loop(self) -> None:
        ticks = 0  # of a tenth of a second, as uvicorn counts them
        while not await self.on_tick(ticks):
            ticks += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in (*self.servers, *(sockets or ())):
            each.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                await self._emptied()
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        if not self.force_exit:
            await self.lifespan.shutdown()

    async def _emptied(self) -> None:
        state = self.server_state
        while state.connections or state.tasks:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(LOOK)
        for server in self.servers:
            await server.wait_closed()
