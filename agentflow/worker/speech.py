"""What one attempt says while it runs: small pieces are put together before they are sent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

import structlog

from agentflow.core.cleaning import clean
from agentflow.transport.live import CHANNELS, Outlet, Piece
from agentflow.types import JobId

log = structlog.get_logger(__name__)

EVERY = 0.05
"""Seconds between two pieces, as long as they are small."""

FULL = 8192
"""Characters that are sent without waiting for more; the most that one piece holds."""

MOST = 1 << 20
"""Characters that wait while the event loop has no time; beyond it the oldest are dropped."""


Heard: TypeAlias = tuple[str, str | int]
"""A channel and the text on it, or how many characters were left out."""


class Speech:
    """Made in the event loop; `say` may be called from any thread, and never blocks."""

    def __init__(self, job: JobId, attempt: int, nonce: str, outlet: Outlet | None) -> None:
        self._job, self._attempt, self._run = job, attempt, nonce[-8:]
        self._outlet = outlet
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._heard: list[Heard] = []
        self._length = 0
        self._woken = self._over = self._warned = False
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._offsets: dict[str, int] = {}

    def say(self, text: object, channel: str = "text") -> None:
        """What cannot be shown is left out: no call fails for its live text."""
        if not isinstance(text, str) or channel not in CHANNELS:
            self._warn(text, channel)
        elif text and self._outlet is not None:
            self._hear(text, channel)

    async def end(self) -> None:
        """Nothing more is said. Waits a moment for it to arrive before the outcome does."""
        with self._lock:
            self._over = True
        self._send()
        if self._outlet is None or not self._offsets:
            return
        for channel, length in self._offsets.items():
            self._put(self._outlet, channel, length, "", end=True)
        await self._outlet.settle()

    def _hear(self, text: str, channel: str) -> None:
        here = threading.get_ident() == self._thread
        with self._lock:
            if self._over:
                return
            self._heard.append((channel, text))
            self._length += len(text)
            if self._length > MOST:
                self._leave_out()
            at_once = here and self._length >= FULL
            wake = not self._woken and not at_once
            self._woken = self._woken or wake
        if at_once:
            self._send()
        elif wake:
            with contextlib.suppress(RuntimeError):  # a thread that outlives the process's loop
                self._loop.call_soon_threadsafe(self._due)

    def _leave_out(self) -> None:
        """The older half."""
        half = (len(self._heard) + 1) // 2
        missing: dict[str, int] = {}
        for channel, said in self._heard[:half]:
            length = said if isinstance(said, int) else len(said)
            missing[channel] = missing.get(channel, 0) + length
            self._length -= 0 if isinstance(said, int) else length
        self._heard[:half] = missing.items()

    def _due(self) -> None:
        """At once if nothing was sent for a while, else a little later."""
        left = self._sent_at + EVERY - time.monotonic()
        if left <= 0 or self._length >= FULL:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_later(left, self._send)

    def _send(self) -> None:
        with self._lock:
            heard, self._heard, self._length = self._heard, [], 0
            self._woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sent_at = time.monotonic()
        for channel, said in _joined(heard):
            offset = self._offsets.get(channel, 0)
            length = said if isinstance(said, int) else len(said)
            self._offsets[channel] = offset + length
            if self._outlet is not None and isinstance(said, str):
                text = str(clean(said))  # of the same length
                for start in range(0, length, FULL):
                    piece = text[start : start + FULL]
                    self._put(self._outlet, channel, offset + start, piece)

    def _put(
        self, outlet: Outlet, channel: str, offset: int, text: str, *, end: bool = False
    ) -> None:
        outlet.send(Piece(self._job, self._attempt, self._run, channel, offset, text, end))

    def _warn(self, text: object, channel: object) -> None:
        if not self._warned:
            self._warned = True
            kind = type(text).__name__
            log.warning("Live text left out", job_id=self._job, type=kind, channel=channel)


def _joined(heard: Sequence[Heard]) -> Iterator[Heard]:
    """One text for what follows each other on a channel."""
    for (channel, kind), run in groupby(heard, lambda each: (each[0], type(each[1]))):
        said = [each for _, each in run]
        if kind is str:
            yield channel, "".join(str(each) for each in said)
        else:
            yield from ((channel, each) for each in said)
