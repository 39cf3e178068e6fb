"""Live text over Redis: a short stream for each job, written by its worker.

A web process reads the streams of those jobs that somebody follows there, all by one connection.
The entries carry their place in the text, so that a stream that was trimmed, expired or lost shows
as a gap. Each worker keeps count of what it has in Redis and deletes its oldest before that is too
much. While Redis is away a worker keeps the newest pieces for a while, and calls go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from redis.exceptions import ResponseError

from agentflow.transport.live import SILENT, Limits, Piece, Window
from agentflow.transport.redis_link import (
    AWAY,
    BLOCK,
    Link,
    Outage,
    heed_cancellation,
    live,
    nudges,
)
from agentflow.types import JobId

log = structlog.get_logger(__name__)

PACK = 64
"""Pieces written in one trip."""

WAITING = 2 << 20
"""Characters that wait to be written; beyond it the oldest are dropped."""

PATIENCE = 1.0
"""Seconds that anybody waits for Redis."""

OVERHEAD = 64
"""Bytes of an entry besides its text."""

BREATH = 0.02
"""Seconds between two reads that bring something: many jobs are read together."""

ENTRIES = 32
"""Of one stream in one read."""

Entries = Sequence[tuple[bytes, dict[bytes, bytes]]]


class _Stream:
    """What this worker has in one job's stream: the sizes of its entries."""

    def __init__(self, run: tuple[int, str]) -> None:
        self.run = run
        self.sizes: deque[int] = deque()
        self.total = 0

    def add(self, size: int, most: int) -> int:
        """How many entries the stream may have with this one. The first of a run leaves none of
        what was there before."""
        self.sizes.append(size)
        self.total += size
        while self.total > most and len(self.sizes) > 1:
            self.total -= self.sizes.popleft()
        return len(self.sizes)


class RedisOutlet:
    """The worker's side."""

    def __init__(self, redis: Link, limits: Limits) -> None:
        self._redis, self._limits = redis, limits
        self._outage = Outage()
        self._away = False
        self._waiting: deque[Piece] = deque()
        self._length = 0
        self._sent = self._done = 0
        self._bell = asyncio.Event()
        self._moved = asyncio.Condition()
        self._streams: OrderedDict[JobId, _Stream] = OrderedDict()
        self._ended: deque[tuple[float, JobId, _Stream]] = deque()
        self.size = 0
        """Bytes that are in Redis by this worker, as far as it knows."""

    def send(self, piece: Piece) -> None:
        self._waiting.append(piece)
        self._sent += 1
        self._length += len(piece.text)
        while self._length > WAITING:
            self._length -= len(self._waiting.popleft().text)
            self._done += 1
        self._bell.set()

    async def settle(self) -> None:
        sent = self._sent
        if self._away:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE), self._moved:
                await self._moved.wait_for(lambda: self._done >= sent or self._away)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            while self._waiting:
                pack = [self._waiting.popleft() for _ in range(min(PACK, len(self._waiting)))]
                self._length -= sum(len(piece.text) for piece in pack)
                try:
                    await self._write(pack)
                    self._away = False
                except (*AWAY, ResponseError) as error:
                    self._away = True
                    self._outage.notice(error)
                    self._keep(pack)
                else:
                    self._done += len(pack)
                heed_cancellation()
                async with self._moved:
                    self._moved.notify_all()
                if self._away:
                    await asyncio.sleep(0.3)

    def _keep(self, pack: Sequence[Piece]) -> None:
        """To be written again; what did arrive is known by its place."""
        self._waiting.extendleft(reversed(pack))
        self._length += sum(len(piece.text) for piece in pack)

    async def _write(self, pack: Sequence[Piece]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            kept: dict[JobId, float] = {}
            for piece in pack:
                packed = packed_piece(piece)
                most = self._count(piece, len(packed["t"]) + OVERHEAD)
                pipe.xadd(live(piece.job_id), packed, maxlen=most, approximate=False)
                kept[piece.job_id] = self._limits.keep if piece.end else SILENT
            for job in self._surplus():
                kept.pop(job, None)
                pipe.unlink(live(job))
            for job, seconds in kept.items():
                pipe.pexpire(live(job), int(seconds * 1000))
            await pipe.execute()

    def _count(self, piece: Piece, size: int) -> int:
        """How many entries the stream of this piece's job may have with it."""
        stream = self._streams.get(piece.job_id)
        run = (piece.attempt, piece.run)
        if stream is None or stream.run != run:
            self.size -= stream.total if stream else 0
            stream = self._streams[piece.job_id] = _Stream(run)
        before = stream.total
        most = stream.add(size, self._limits.job)
        self.size += stream.total - before
        self._streams.move_to_end(piece.job_id)
        if piece.end:
            self._ended.append((time.monotonic() + self._limits.keep, piece.job_id, stream))
        return most

    def _surplus(self) -> Iterator[JobId]:
        """Those that are too many, the longest silent first. They are known no more, nor are those
        that Redis has let go of."""
        while self._ended and self._ended[0][0] < time.monotonic():
            _, job, stream = self._ended.popleft()
            if self._streams.get(job) is stream:
                del self._streams[job]
                self.size -= stream.total
        while self.size > self._limits.total:
            job, stream = self._streams.popitem(last=False)
            self.size -= stream.total
            yield job


class RedisInlet:
    """The web role's side: one reader for all who follow in this process."""

    def __init__(self, redis: Link, name: str, limits: Limits) -> None:
        self._redis, self._nudges = redis, nudges(name)
        self.window = Window(limits)
        self._outage = Outage()
        self._followers: Counter[JobId] = Counter()
        self._cursors: dict[JobId, bytes] = {}
        self._nudged = b"0"
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def follow(self, job: JobId, bell: asyncio.Event) -> Iterator[None]:
        with self.window.listen(job, bell):
            self._followers[job] += 1
            if self._followers[job] == 1:
                self._cursors[job] = b"0"
                self._wanted.set()
                self._nudge()
            try:
                yield
            finally:
                self._followers[job] -= 1
                if not self._followers[job]:
                    del self._followers[job], self._cursors[job]
                    self.window.drop(job)

    async def catch_up(self, job: JobId) -> None:
        with contextlib.suppress(TimeoutError, *AWAY, ResponseError):
            async with asyncio.timeout(PATIENCE):
                behind = self._cursors.get(job, b"0").decode()
                self._take(job, await self._redis.xrange(live(job), f"({behind}"))

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            if not self._cursors:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                news = await self._read()
            except (*AWAY, ResponseError) as error:
                self._outage.notice(error)
                await asyncio.sleep(0.5)
                news = False
            heed_cancellation()
            if news:
                await asyncio.sleep(BREATH)

    async def _read(self) -> bool:
        """Whether there was something new, of all jobs followed."""
        jobs = {live(job).encode(): job for job in self._cursors}
        behind: dict[bytes, bytes] = {key: self._cursors[job] for key, job in jobs.items()}
        answer: Any = await self._redis.xread(
            {**behind, self._nudges.encode(): self._nudged}, count=ENTRIES, block=int(BLOCK * 1000)
        )
        for key, entries in answer or ():
            if key in jobs:
                self._take(jobs[key], entries)
            else:
                self._nudged = entries[-1][0]
        return bool(answer)

    def _take(self, job: JobId, entries: Entries) -> None:
        for id, fields in entries:
            if job not in self._cursors:
                return
            self._cursors[job] = max(self._cursors[job], id, key=_order)
            try:
                self.window.add(read_piece(job, fields))
            except (KeyError, ValueError) as error:
                log.error("Live text was not understood", job_id=job, error=str(error)[:200])

    def _nudge(self) -> None:
        """End the blocking read, so that it is begun again with one job more."""
        task = asyncio.ensure_future(self._end_read())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_read(self) -> None:
        with contextlib.suppress(TimeoutError, *AWAY, ResponseError):
            async with asyncio.timeout(PATIENCE), self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(self._nudges, {"": ""}, maxlen=1, approximate=False)
                pipe.expire(self._nudges, 60)
                await pipe.execute()


def packed_piece(piece: Piece) -> dict[str, Any]:
    said = {"a": piece.attempt, "r": piece.run, "c": piece.channel, "o": piece.offset}
    return {**said, "t": piece.text.encode(), **({"e": 1} if piece.end else {})}


def read_piece(job: JobId, fields: dict[bytes, bytes]) -> Piece:
    """Raises `KeyError` and `ValueError` for what a later version writes."""
    return Piece(
        job,
        int(fields[b"a"]),
        fields[b"r"].decode(),
        fields[b"c"].decode(),
        int(fields[b"o"]),
        fields[b"t"].decode(),
        b"e" in fields,
    )


def _order(id: bytes) -> tuple[int, int]:
    ms, _, number = id.partition(b"-")
    return int(ms), int(number or 0)
