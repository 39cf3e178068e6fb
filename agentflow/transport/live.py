"""Live text: what calls say while they run, for those who listen meanwhile.

Nothing of it is stored, and any of it may be lost: the result is the truth. Each piece says where
it belongs, so that what is missing shows, and what comes twice is taken once. Memory is bounded
per job and over all jobs; what does not fit, the oldest first, is missing like all that is lost.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from agentflow.types import JobId

CHANNELS = ("text", "logs")

SILENT = 3600.0
"""Seconds after which the text of a call that says nothing any more, not even its end, goes."""

SWEEP = 1.0
"""Seconds between two looks for what is too old."""

GROWN = 2048
"""Characters up to which small pieces are kept as one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`offset` is how many characters the attempt said on this channel before. `run` tells two
    calls of one attempt apart. With `end`, the channel says no more: its length is `offset`."""

    job_id: JobId
    attempt: int
    run: str
    channel: str
    offset: int
    text: str
    end: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of one job and of all together; seconds for which the text is kept after its end."""

    job: int
    total: int
    keep: float


class Outlet(Protocol):
    """Where a worker puts the pieces."""

    def send(self, piece: Piece) -> None:
        """Never blocks; what cannot be sent is dropped."""

    async def settle(self) -> None:
        """Wait a moment for what was sent to arrive, so that it is there before what is said
        next by other ways."""


class Inlet(Protocol):
    """Where the web role finds them."""

    @property
    def window(self) -> Window: ...

    def follow(self, job: JobId, bell: asyncio.Event) -> AbstractContextManager[None]:
        """Ring the bell for what comes; meanwhile the window is filled."""

    async def catch_up(self, job: JobId) -> None:
        """Wait a moment for what was sent before now to be in the window."""


class Tape:
    """The newest text of one channel, with holes where pieces were lost."""

    def __init__(self) -> None:
        self._parts: deque[tuple[int, str]] = deque()
        self.size = 0
        self.end = 0
        """Where the text ends, as far as it is known."""

    def add(self, offset: int, text: str) -> None:
        text, offset = text[max(0, self.end - offset) :], max(self.end, offset)
        if text:
            before = self._parts[-1] if self._parts else None
            small = before is not None and len(before[1]) + len(text) <= GROWN
            if before is not None and small and before[0] + len(before[1]) == offset:
                self._parts.pop()
                self.size -= sys.getsizeof(before[1])
                self._parts.append((before[0], before[1] + text))
            else:
                self._parts.append((offset, text))
            self.size += sys.getsizeof(self._parts[-1][1])
        self.end = offset + len(text)

    def forget(self) -> None:
        """Drop the oldest part."""
        self.size -= sys.getsizeof(self._parts.popleft()[1])

    def read(self, offset: int, most: int) -> tuple[int, str]:
        """The first text at or behind `offset`, and where it begins; at the end if there is
        none. It is cut at a hole and after `most` characters."""
        found: deque[tuple[int, str]] = deque()
        for at, text in reversed(self._parts):
            if at + len(text) <= offset:
                break
            found.appendleft((at, text))
        if not found:
            return self.end, ""
        start = max(offset, found[0][0])
        end, texts = found[0][0], []
        for at, text in found:
            if at != end or end - start >= most:
                break
            texts.append(text[max(0, start - at) :])
            end += len(text)
        return start, "".join(texts)[:most]


@dataclass(slots=True)
class Said:
    """What one attempt of a job has said."""

    attempt: int
    run: str
    tapes: dict[str, Tape] = field(default_factory=dict)
    ended: bool = False
    touched: float = 0.0

    @property
    def size(self) -> int:
        return sum(tape.size for tape in self.tapes.values())

    def add(self, piece: Piece, most: int) -> None:
        tape = self.tapes.setdefault(piece.channel, Tape())
        tape.add(piece.offset, piece.text)
        self.ended = self.ended or piece.end
        while self.size > most:
            max(self.tapes.values(), key=lambda tape: tape.size).forget()


class Window:
    """The newest text of the newest attempt of each job."""

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._now = limits, now
        self._jobs: OrderedDict[JobId, Said] = OrderedDict()
        self._bells: dict[JobId, set[asyncio.Event]] = {}
        self._swept = 0.0
        self.size = 0
        """Bytes of all text."""

    def add(self, piece: Piece) -> None:
        """Pieces of an attempt that was superseded are dropped, and those of a second run."""
        now = self._now()
        said = self._jobs.get(piece.job_id)
        if said is None or said.attempt < piece.attempt:
            self.drop(piece.job_id)
            said = self._jobs[piece.job_id] = Said(piece.attempt, piece.run)
        elif (said.attempt, said.run) != (piece.attempt, piece.run):
            return
        before = said.size
        said.add(piece, self._limits.job)
        said.touched = now
        self.size += said.size - before
        self._jobs.move_to_end(piece.job_id)
        self._make_room(now)
        for bell in self._bells.get(piece.job_id, ()):
            bell.set()

    def get(self, job: JobId) -> Said | None:
        said = self._jobs.get(job)
        return None if said is None or self._old(said, self._now()) else said

    def drop(self, job: JobId) -> None:
        said = self._jobs.pop(job, None)
        if said is not None:
            self.size -= said.size

    @contextmanager
    def listen(self, job: JobId, bell: asyncio.Event) -> Iterator[None]:
        bells = self._bells.setdefault(job, set())
        bells.add(bell)
        try:
            yield
        finally:
            bells.discard(bell)
            if not bells:
                self._bells.pop(job, None)

    def _make_room(self, now: float) -> None:
        """For the total, those go first that said nothing for the longest time."""
        if now - self._swept > SWEEP:
            self._swept = now
            for job in [job for job, said in self._jobs.items() if self._old(said, now)]:
                self.drop(job)
        while self.size > self._limits.total:
            self.drop(next(iter(self._jobs)))

    def _old(self, said: Said, now: float) -> bool:
        return now - said.touched > (self._limits.keep if said.ended else SILENT)


class LocalLive:
    """Both sides inside one process."""

    def __init__(self, limits: Limits) -> None:
        self.window = Window(limits)

    def send(self, piece: Piece) -> None:
        self.window.add(piece)

    async def settle(self) -> None:
        """It has arrived."""

    @contextmanager
    def follow(self, job: JobId, bell: asyncio.Event) -> Iterator[None]:
        with self.window.listen(job, bell):
            yield

    async def catch_up(self, job: JobId) -> None:
        """All is there."""
