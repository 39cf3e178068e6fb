"""A Taskiq broker on Redis streams: taskiq-redis's, with what was measured to go wrong mended.

Groups read from the beginning of a stream; entries are deleted when they are settled; a message
whose like still lies in the stream is not added again; the more urgent stream is read first; a
worker reads no more than it has hands for; quiet streams are reclaimed from dead workers too; a
lost connection, a flush or a deleted stream ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog
from redis.exceptions import ResponseError
from taskiq import AckableMessage
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq_redis import RedisStreamBroker

from agentflow.transport.redis_link import (
    AWAY,
    BLOCK,
    PASSING,
    WORKERS,
    Link,
    Outage,
    bury,
    connect,
    heed_cancellation,
    make_group,
    queue_of,
    reclaim,
)

log = structlog.get_logger(__name__)

AT_ONCE = 8
"""A worker takes so many messages in one read, so that the others get theirs."""

IDLE = 30.0
"""Seconds after which a message that was taken and not settled belongs to whoever asks."""

RECLAIM_EVERY = 10.0

CROWDED = 0.05
"""Seconds between two looks at the streams while some of them have no room here."""

FORGET = 600.0
"""Seconds of silence after which a consumer without messages is deleted."""

Free: TypeAlias = Callable[[str, Mapping[str, int]], int]

_ADD_ONCE = """
local id = redis.call('HGET', KEYS[2], ARGV[1])
if id and #redis.call('XRANGE', KEYS[1], id, id) > 0 then return false end
id = redis.call('XADD', KEYS[1], '*', 'key', ARGV[1], 'data', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], id)
return id
"""

_SETTLE = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
if redis.call('HGET', KEYS[2], ARGV[3]) == ARGV[2] then redis.call('HDEL', KEYS[2], ARGV[3]) end
"""
"""In one step: a message that is acknowledged and still there would be nobody's for ever."""

_READ_IN_ORDER = """
for place, stream in ipairs(KEYS) do
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[2 + place],
    'STREAMS', stream, '>')
  if read and #read[1][2] > 0 then return read[1] end
end
return false
"""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One message as it lies in a stream; `key` says what it is about."""

    stream: str
    id: bytes
    key: bytes
    data: bytes


class StreamBroker(RedisStreamBroker):
    """`streams` in the order in which they are read; `free` is how many more messages of a queue
    have room, given how many of each were handed out and are not settled. `stir` tells that there
    may be more room."""

    def __init__(self, url: str, streams: Sequence[str], consumer: str, free: Free) -> None:
        super().__init__(url, streams[0], consumer_name=consumer, consumer_id="0")
        self.streams, self._free = list(streams), free
        self.redis: Link = connect(url)
        self._outage = Outage()
        self._add_once = self.redis.register_script(_ADD_ONCE)
        self._settle_one = self.redis.register_script(_SETTLE)
        self._read_in_order = self.redis.register_script(_READ_IN_ORDER)
        self._buffer: list[Entry] = []
        self._handed: set[Entry] = set()
        self._settled: list[Entry] = []
        self._bell, self._stirred = asyncio.Event(), asyncio.Event()
        self._was_cut = False
        self._reclaimed_at = 0.0

    async def startup(self) -> None:
        """Nothing: groups are made when reading finds none, so that Redis may come later."""

    async def shutdown(self) -> None:
        """Settle what was taken up, give back what was read and was not, and disconnect."""
        with contextlib.suppress(*AWAY, ResponseError):
            await self._settle()
            await self._give_back()
        await self.redis.aclose()
        await self.connection_pool.disconnect()

    async def _give_back(self) -> None:
        """By what Redis knows: a read that was cancelled may have been answered."""
        mine = await self._mine()
        self._settled += mine
        await self._settle()
        async with self.redis.pipeline(transaction=False) as pipe:
            for entry in mine:
                await self._add(pipe, entry.stream, entry.key, entry.data)
            await pipe.execute()

    # -- sending ---------------------------------------------------------------------------------

    def packed(self, task: str, key: str, fields: Any) -> BrokerMessage:
        """A call of `task` as Taskiq writes it, for workers who know the task."""
        message = TaskiqMessage(task_id=key, task_name=task, labels={}, args=[fields], kwargs={})
        return self.formatter.dumps(message)

    async def send(self, messages: Sequence[tuple[str, BrokerMessage]]) -> None:
        """Each (stream, message), unless its like is still there. Raises what Redis raises."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for stream, message in messages:
                await self._add(pipe, stream, message.task_id, message.message)
            await pipe.execute()

    async def _add(self, pipe: Link, stream: str, key: str | bytes, data: bytes) -> None:
        await self._add_once([stream, f"{stream}:keys"], [key, data], client=pipe)

    async def kick(self, message: BrokerMessage) -> None:
        stream = message.labels.get("queue_name") or self.streams[0]
        await self.send([(stream, message)])

    def stir(self) -> None:
        self._stirred.set()

    # -- receiving -------------------------------------------------------------------------------

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        while True:
            if not self._buffer:
                await self._survive(self._fill)
            while self._buffer:
                entry = self._buffer.pop(0)
                self._handed.add(entry)
                yield AckableMessage(data=entry.data, ack=self._ack(entry))

    async def settling(self) -> None:
        """Delete what was settled, at once and together; runs until it is cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            await self._survive(self._settle)

    def _ack(self, entry: Entry) -> Callable[[], None]:
        def ack() -> None:
            self._handed.discard(entry)
            self._settled.append(entry)
            self._bell.set()
            self.stir()

        return ack

    async def keeping(self) -> None:
        """Tell again and again that what waits here is not left behind; runs until it is
        cancelled."""
        while True:
            await asyncio.sleep(RECLAIM_EVERY)
            await self._survive(self._keep)

    async def _keep(self) -> None:
        async with self.redis.pipeline(transaction=False) as pipe:
            for stream in {entry.stream for entry in self._handed}:
                ids = [entry.id for entry in self._handed if entry.stream == stream]
                pipe.xclaim(stream, WORKERS, self.consumer_name, 0, ids, idle=0, justid=True)
            await pipe.execute()

    def _room(self) -> dict[str, int]:
        """The streams whose messages have room, in order, and how many of them at once."""
        handed = Counter(queue_of(entry.stream) for entry in self._handed)
        room = {queue: self._free(queue, handed) for queue in map(queue_of, self.streams)}
        return {s: min(n, AT_ONCE) for s in self.streams if (n := room[queue_of(s)]) > 0}

    async def _fill(self) -> None:
        self._buffer = await self._fetch()

    async def _fetch(self) -> list[Entry]:
        if self._was_cut:
            found = await self._undelivered()
            self._was_cut = False
            if found:
                return found
        self._stirred.clear()
        room = self._room()
        now = time.monotonic()
        if now - self._reclaimed_at > RECLAIM_EVERY:
            found = await self._left_behind(room)
            self._reclaimed_at = now
            if found:
                return found
        read = room and await self._read_in_order(
            list(room), [WORKERS, self.consumer_name, *room.values()]
        )
        if read:
            stream, entries = read
            self._rotate(stream.decode())
            pairs = [(id, dict(zip(f[::2], f[1::2], strict=True))) for id, f in entries]
            return [_entry(stream.decode(), id, fields) for id, fields in pairs]
        if len(room) < len(self.streams):  # to block on some would keep from hearing of the others
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CROWDED):
                    await self._stirred.wait()
            return []
        answer = await self.redis.xreadgroup(
            WORKERS,
            self.consumer_name,
            dict.fromkeys(self.streams, ">"),
            count=1,
            block=int(BLOCK * 1000),
        )
        return _entries(answer)

    def _rotate(self, stream: str) -> None:
        """It comes last among those of its level: no provider's backlog hides another's calls."""
        level = stream.rpartition(":")[2]
        last = max(i for i, s in enumerate(self.streams) if s.rpartition(":")[2] == level)
        self.streams.remove(stream)
        self.streams.insert(last, stream)

    async def _mine(self) -> list[Entry]:
        """What Redis gave to this worker, as far as it was not settled."""
        streams = dict.fromkeys(self.streams, "0")
        return _entries(await self.redis.xreadgroup(WORKERS, self.consumer_name, streams))

    async def _undelivered(self) -> list[Entry]:
        """What was on its way to this worker when the connection broke."""
        await self._settle()
        handed = {(entry.stream, entry.id) for entry in self._handed}
        return [e for e in await self._mine() if (e.stream, e.id) not in handed]

    async def _left_behind(self, room: Mapping[str, int]) -> list[Entry]:
        """What workers took and died with; for want of new messages nobody else would ask."""
        await self._settle()  # what was taken up in an outage is not left behind
        found: list[Entry] = []
        for stream, most in room.items():
            entries = await reclaim(self.redis, stream, WORKERS, self.consumer_name, IDLE, most)
            found += [_entry(stream, id, fields) for id, fields in entries]
            await bury(self.redis, stream, WORKERS, FORGET)
        return found

    async def _settle(self) -> None:
        settled, self._settled = self._settled, []
        try:
            async with self.redis.pipeline(transaction=False) as pipe:
                for e in settled:
                    await self._settle_one(
                        [e.stream, f"{e.stream}:keys"], [WORKERS, e.id, e.key], client=pipe
                    )
                await pipe.execute()
        except BaseException:
            self._settled[:0] = settled
            raise

    async def _survive(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take the step, again and again until Redis is there for it."""
        pause = 0.05
        while True:
            try:
                await step()
                heed_cancellation()
                return
            except AWAY as error:
                self._outage.notice(error)
                self._was_cut = True
            except ResponseError as error:
                if not any(word in str(error) for word in PASSING):
                    log.error("Redis refuses", error=str(error)[:200])
                await self._make_groups()
            heed_cancellation()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _make_groups(self) -> None:
        with contextlib.suppress(*AWAY, ResponseError):
            for stream in self.streams:
                await make_group(self.redis, stream, WORKERS)


def _entries(answer: Any) -> list[Entry]:
    """Those of an answer of XREADGROUP; what was deleted has no fields."""
    return [
        _entry(stream.decode(), id, fields)
        for stream, entries in answer or ()
        for id, fields in entries
        if fields
    ]


def _entry(stream: str, id: bytes, fields: dict[bytes, bytes]) -> Entry:
    return Entry(stream, id, fields.get(b"key", b""), fields.get(b"data", b""))
