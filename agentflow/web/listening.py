"""An HTTP server as a guest in a process that has other things to close after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from agentflow.errors import SettingsError

DRAIN = 2
"""Seconds for open requests to end at a stop; waiting ones and live streams are cut then."""

ECHO = 0.5
"""Seconds in which a second signal is the first one again: make, uv and the like pass Ctrl-C on
to a process that the terminal has told already."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `SettingsError` if that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"{host}:{port} cannot be listened on ({os.strerror(error.errno or 0)}). Stop what"
            " uses it, or choose another port with --port or AGENTFLOW_PORT (0 takes a free one)."
        ) from None
    return listener


class Listening(uvicorn.Server):
    """Serves `app` on a bound socket until `stop`, or the first SIGINT or SIGTERM.

    The host of the process opens and closes everything else around it; a second signal ends the
    process at once, which loses nothing that was answered with 2xx.
    """

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=DRAIN,
        )
        config.access_log = False  # said to the constructor, it would silence every server here
        super().__init__(config)
        self._up = asyncio.Event()
        self._asked = 0.0

    @contextlib.asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[None]:
        """The block runs once requests are answered; leaving it waits for the stop."""
        task = asyncio.ensure_future(self.serve([listener]))
        task.add_done_callback(lambda _: self._up.set())  # also if it could not start
        await self._up.wait()
        try:
            yield
        except BaseException:
            self.stop()
            raise
        finally:
            await task

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()

    def stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The signals are taken by `signals`, for longer than the server serves."""
        yield

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Until the end of this block the first signal stops the server, the second everything."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.should_exit and now - self._asked > ECHO:
            _say("Stopped at once.")
            os._exit(128 + sig)
        if not self.should_exit:
            self._asked = now
            super().handle_exit(sig, frame)  # first, for a second signal may come while we speak
            _say("Stopping. Once more to stop at once.")


def _say(text: str) -> None:
    sys.stderr.write(f"\n{text}\n")
    sys.stderr.flush()
