"""The conversation between workers and writers over Redis.

Workers say things in one stream that the writers share; each worker has a list for its answers.
Whatever is lost on the way is said again: an entry that is gone from the stream without an answer
was lost, or its answer was. Claims and reports are answered the same when they are repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog
from redis.exceptions import ResponseError

from agentflow.core.events import Envelope
from agentflow.transport.conversation import Beat, Claim, Denied, Granted, Heard
from agentflow.transport.redis_link import (
    AWAY,
    BLOCK,
    EPOCH,
    EVENTS,
    PASSING,
    TOLD,
    WRITERS,
    Link,
    Outage,
    bury,
    heed_cancellation,
    make_group,
    reclaim,
    replies,
)
from agentflow.transport.wire import dump_answer, dump_said, key_of, load_answer, load_said
from agentflow.types import JobId

log = structlog.get_logger(__name__)

PACK = 50
"""Things said in one entry of the stream."""

AGAIN = 2.0
"""Seconds after which a worker looks whether what it said is still on its way."""

KEPT = 300
"""Seconds for which answers are kept for a worker that is away."""

IDLE = 8.0
"""Seconds after which what one writer read and did not answer is read by another."""

NOT_UNDERSTOOD = (ValueError, LookupError, TypeError)
"""What the words of another version raise."""

STUCK = 6.0
"""Seconds without an answer after which a writer reads no more and keeps nothing from the others:
its link to the database may be cut, and theirs not."""

AHEAD = 2000
"""Things read and not yet taken; more are left in Redis."""


@dataclass(slots=True, eq=False)
class _Asked:
    """Something said whose answer is awaited; `entry` is where it lies in the stream."""

    said: Claim | Envelope
    answer: asyncio.Future[Granted | Denied | None]
    waiting: int = 0
    entry: bytes | None = None
    at: float = 0.0


class RedisWorkerSide:
    """How a worker reaches the writers. `stop` is called for attempts that are to be stopped,
    `freed` for a line that is first in a queue for permits."""

    def __init__(self, redis: Link, worker: str) -> None:
        self._redis, self.worker = redis, worker
        self._outage = Outage()
        self._open: dict[str, _Asked] = {}
        self._fresh: list[_Asked | Beat] = []
        self._bell = asyncio.Event()
        self.stop: Callable[[JobId, int], None] = lambda _job, _attempt: None
        self.freed: Callable[[str], None] = lambda _line: None

    async def claim(self, claim: Claim) -> Granted | Denied:
        answer = await self._ask(claim)
        assert answer is not None, "a claim is granted or denied"
        return answer

    async def report(self, envelope: Envelope) -> None:
        await self._ask(envelope)

    def beat(self, worker: str, attempts: Sequence[tuple[JobId, int]]) -> None:
        self._fresh = [x for x in self._fresh if not isinstance(x, Beat)]
        self._fresh.append(Beat(worker, attempts))
        self._bell.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name="agentflow-worker-says")
            group.create_task(self._repeat(), name="agentflow-worker-repeats")
            group.create_task(self._hear(), name="agentflow-worker-hears")

    async def _ask(self, said: Claim | Envelope) -> Granted | Denied | None:
        key = key_of(said)
        asked = self._open.get(key)
        if asked is None:
            asked = _Asked(said, asyncio.get_running_loop().create_future())
            self._open[key] = asked
            self._fresh.append(asked)
            self._bell.set()
        asked.waiting += 1
        try:
            return await asyncio.shield(asked.answer)
        finally:
            asked.waiting -= 1
            if not asked.waiting:
                self._open.pop(key, None)

    async def _send(self) -> None:
        """What is said, at once; what gathers while a sending is under way goes together."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            while self._fresh:
                pack, self._fresh = self._fresh[:PACK], self._fresh[PACK:]
                try:
                    await self._say(pack)
                except (*AWAY, ResponseError) as error:
                    self._outage.notice(error)
                    self._fresh[:0] = pack
                    await asyncio.sleep(0.3)
                heed_cancellation()

    async def _say(self, pack: Sequence[_Asked | Beat]) -> None:
        said = [dump_said(x if isinstance(x, Beat) else x.said) for x in pack]
        id = await self._redis.xadd(EVENTS, {"from": self.worker, "said": orjson.dumps(said)})
        now = time.monotonic()
        for asked in pack:
            if isinstance(asked, _Asked):
                asked.entry, asked.at = id, now

    async def _repeat(self) -> None:
        """Say again what is neither answered nor on its way any more."""
        while True:
            await asyncio.sleep(AGAIN)
            old = time.monotonic() - AGAIN
            late = [a for a in self._open.values() if a.entry and a.at < old]
            try:
                lost = await self._lost({a.entry for a in late if a.entry})
            except (*AWAY, ResponseError):
                continue
            heed_cancellation()
            again = [a for a in late if a.entry in lost and a not in self._fresh]
            if again:
                log.debug("Said again", count=len(again))
                self._fresh += again
                self._bell.set()

    async def _lost(self, entries: set[bytes]) -> set[bytes]:
        """Those that are gone from the stream."""
        ids = list(entries)
        async with self._redis.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.xrange(EVENTS, id, id)
            found = await pipe.execute()
        return {id for id, there in zip(ids, found, strict=True) if not there}

    async def _hear(self) -> None:
        key = replies(self.worker)
        while True:
            try:
                answer = await self._redis.blmpop(BLOCK, 1, key, direction="LEFT", count=100)
            except (*AWAY, ResponseError) as error:
                self._outage.notice(error)
                await asyncio.sleep(0.3)
                continue
            heed_cancellation()
            for packed in answer[1] if answer else ():
                for told in _parts(packed):
                    try:
                        self._understand(*told)
                    except NOT_UNDERSTOOD as error:
                        log.error("A writer was not understood", error=str(error)[:200])

    def _understand(self, kind: str, *rest: Any) -> None:
        if kind == "stop":
            self.stop(JobId(rest[0]), rest[1])
        elif kind == "freed":
            self.freed(rest[0])
        elif kind == "answer":
            asked = self._open.get(rest[0])
            if asked is not None and not asked.answer.done():
                asked.answer.set_result(load_answer(rest[1]))


@dataclass(slots=True, eq=False)
class _Entry:
    """One entry of the stream; it is deleted when the last thing in it is answered."""

    id: bytes
    worker: str
    left: int


@dataclass(slots=True, eq=False)
class RedisHeard:
    said: Claim | Envelope | Beat
    entry: _Entry
    owner: RedisWriterSide = field(repr=False)

    def reply(self, value: Granted | Denied | None) -> None:
        self.owner.answer(self, value)


class RedisWriterSide:
    """How a writer hears. `gap` is called when something said may have been lost: with True if
    Redis has lost its data."""

    def __init__(self, redis: Link, consumer: str) -> None:
        self._redis, self._consumer = redis, consumer
        self._outage = Outage()
        self.bell = asyncio.Event()
        self.gap: Callable[[bool], None] = lambda _lost: None
        self._heard: deque[RedisHeard] = deque()
        self._in_hand: dict[bytes, _Entry] = {}
        self._room = asyncio.Event()
        self._answers: dict[str, list[Any]] = {}
        self._done: list[bytes] = []
        self._changed: list[JobId] = []
        self._epoch: bytes | None = None
        self._last_epoch: bytes | None = None
        self._reclaimed_at = self._moved_at = 0.0

    # -- the writer's ----------------------------------------------------------------------------

    def take(self, most: int) -> list[Heard]:
        taken: list[Heard] = []
        while self._heard and len(taken) < most:
            taken.append(self._heard.popleft())
        self._room.set()
        return taken

    def give_back(self, heard: Sequence[Heard]) -> None:
        self._heard.extendleft(h for h in reversed(heard) if isinstance(h, RedisHeard))
        self.bell.set()

    @property
    def empty(self) -> bool:
        return not self._heard

    def answer(self, heard: RedisHeard, value: Granted | Denied | None) -> None:
        if not isinstance(heard.said, Beat):
            told = ["answer", key_of(heard.said), dump_answer(value)]
            self._answers.setdefault(heard.entry.worker, []).append(told)
        heard.entry.left -= 1
        if heard.entry.left == 0:
            self._done.append(heard.entry.id)

    def stop_attempt(self, worker: str, job: JobId, attempt: int) -> None:
        """Tell a worker to stop an attempt."""
        self._answers.setdefault(worker, []).append(["stop", job, attempt])

    def tell(self, jobs: Sequence[JobId]) -> None:
        """Tell those who wait for these jobs, wherever they are."""
        self._changed += jobs

    async def flush(self) -> None:
        """One trip for all answers. If Redis is away they are lost, and asked for again."""
        answers, self._answers = self._answers, {}
        done, self._done = self._done, []
        changed, self._changed = self._changed, []
        if done:
            self._moved_at = time.monotonic()
        if not (answers or done or changed):
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for worker, told in answers.items():
                    pipe.rpush(replies(worker), orjson.dumps(told))
                    pipe.expire(replies(worker), KEPT)
                if done:  # deleted first: what is acknowledged and still there is nobody's
                    pipe.xdel(EVENTS, *done)
                    pipe.xack(EVENTS, WRITERS, *done)
                if changed:
                    pipe.publish(TOLD, orjson.dumps(changed))
                await pipe.execute()
        except (*AWAY, ResponseError) as error:
            self._outage.notice(error)
        for id in done:
            self._in_hand.pop(id, None)

    async def heard_until(self) -> float | None:
        """See `WriterSide`: the age of the oldest entry in the stream that is not of this turn."""
        waiting = {heard.entry.id for heard in self._heard}
        taken = self._in_hand.keys() - waiting
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.get(EPOCH)
                pipe.xrange(EVENTS, count=len(taken) + 1)
                (seconds, micros), epoch, entries = await pipe.execute()
            if epoch is None or epoch != self._epoch:
                await self._renew()
                return None
        except (*AWAY, ResponseError):
            self.gap(False)
            return None
        left = [id for id, _ in entries if id not in taken]
        if not left:
            return 0.0
        said_at = int(left[0].partition(b"-")[0]) / 1000
        return max(0.0, float(seconds + micros / 1e6 - said_at))

    # -- reading ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        pause = 0.05
        while True:
            try:
                if self._epoch is None:
                    await self._renew()
                await self._read()
                pause = 0.05
            except AWAY as error:
                self._outage.notice(error)
                self._epoch = None
                self.gap(False)
            except ResponseError as error:
                if not any(word in str(error) for word in PASSING):
                    log.error("Redis refuses", error=str(error)[:200])
                self._epoch = None
            else:
                heed_cancellation()
                continue
            heed_cancellation()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def ready(self) -> None:
        """Make the group, so that nothing said from now on is missed."""
        with contextlib.suppress(*AWAY, ResponseError):
            await self._renew()

    async def _renew(self) -> None:
        """Learn whether Redis still is the one we knew."""
        known = self._epoch
        await make_group(self._redis, EVENTS, WRITERS)
        made = await self._redis.set(EPOCH, secrets.token_hex(8), nx=True)
        self._epoch = await self._redis.get(EPOCH)
        before, self._last_epoch = self._last_epoch, self._epoch
        lost = bool(made) or (before is not None and before != self._epoch)
        if lost or known is not None or before is not None:
            self.gap(lost)

    async def _read(self) -> None:
        while len(self._heard) > AHEAD:
            self._room.clear()
            await self._room.wait()
        now = time.monotonic()
        if self._in_hand and now - self._moved_at > STUCK:
            await asyncio.sleep(AGAIN / 10)
            return
        if now - self._reclaimed_at > IDLE / 2:
            self._reclaimed_at = now
            self._keep(await reclaim(self._redis, EVENTS, WRITERS, self._consumer, IDLE, 100))
            await bury(self._redis, EVENTS, WRITERS, 60.0)
        answer = await self._redis.xreadgroup(
            WRITERS, self._consumer, {EVENTS: ">"}, count=100, block=int(BLOCK * 1000)
        )
        for _, entries in answer or ():
            self._keep(entries)

    def _keep(self, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for id, fields in entries:
            if id in self._in_hand:
                continue
            heard = _understood(id, fields, self)
            if not self._in_hand:
                self._moved_at = time.monotonic()
            if heard:
                self._in_hand[id] = heard[0].entry
                self._heard.extend(heard)
            else:  # a ring, or words of a version to come, whose sender keeps them
                self._done.append(id)
            self.bell.set()


def _understood(id: bytes, fields: dict[bytes, bytes], owner: RedisWriterSide) -> list[RedisHeard]:
    entry = _Entry(id, fields.get(b"from", b"").decode(errors="replace"), 0)
    heard = []
    for each in _parts(fields.get(b"said", b"[]")):
        try:
            heard.append(RedisHeard(load_said(each), entry, owner))
        except NOT_UNDERSTOOD as error:
            log.error("A worker was not understood", worker=entry.worker, error=str(error)[:200])
    entry.left = len(heard)
    return heard


def _parts(said: bytes) -> list[Any]:
    """What is said together; what is no list is one thing that nobody understands."""
    try:
        parts = orjson.loads(said)
    except orjson.JSONDecodeError:
        return [None]
    return parts if isinstance(parts, list) else [parts]
