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
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ResponseError
from taskiq import AckableMessage
from taskiq.message import BrokerMessage, TaskiqMessage
from taskiq_redis import RedisStreamBroker

from agentflow.transport.redis_link import (
    AWAY,
    BLOCK,
    WORKERS,
    Link,
    Outage,
    bury,
    connect,
    make_group,
    reclaim,
)

log = structlog.get_logger(__name__)

AT_ONCE = 8
"""A worker takes so many messages in one read, so that the others get theirs."""

IDLE = 30.0
"""Seconds after which a message that was taken and not settled belongs to whoever asks."""

RECLAIM_EVERY = 10.0

FORGET = 600.0
"""Seconds of silence after which a consumer without messages is deleted."""

_ADD_ONCE = """
local id = redis.call('HGET', KEYS[2], ARGV[1])
if id and #redis.call('XRANGE', KEYS[1], id, id) > 0 then return false end
id = redis.call('XADD', KEYS[1], '*', 'key', ARGV[1], 'data', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], id)
return id
"""

_READ_IN_ORDER = """
for _, stream in ipairs(KEYS) do
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3],
    'STREAMS', stream, '>')
  if read and #read[1][2] > 0 then return read[1] end
end
return false
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as it lies in a stream; `key` says what it is about."""

    stream: str
    id: bytes
    key: bytes
    data: bytes


class StreamBroker(RedisStreamBroker):
    """`streams` in the order in which they are read; `free` is how many messages have room."""

    def __init__(
        self, url: str, streams: Sequence[str], consumer: str, free: Callable[[], int]
    ) -> None:
        super().__init__(url, streams[0], consumer_name=consumer, consumer_id="0")
        self.streams, self._free = list(streams), free
        self.redis: Link = connect(url)
        self._outage = Outage()
        self._add_once = self.redis.register_script(_ADD_ONCE)
        self._read_in_order = self.redis.register_script(_READ_IN_ORDER)
        self._settled: list[Entry] = []
        self._bell = asyncio.Event()
        self._buffer: list[Entry] = []
        self._reclaimed_at = 0.0

    async def startup(self) -> None:
        """Nothing: groups are made when reading finds none, so that Redis may come later."""

    async def shutdown(self) -> None:
        """Give back what was read and not handed on, settle what was, and disconnect."""
        with contextlib.suppress(*AWAY, ResponseError):
            for entry in self._buffer:
                await self.redis.xadd(entry.stream, {"key": entry.key, "data": entry.data})
                self._settled.append(entry)
            await self._settle()
        await self.redis.aclose()
        await self.connection_pool.disconnect()

    # -- sending ---------------------------------------------------------------------------------

    def packed(self, task: str, key: str, fields: Any) -> BrokerMessage:
        """A call of `task` as Taskiq writes it, for workers who know the task."""
        message = TaskiqMessage(task_id=key, task_name=task, labels={}, args=[fields], kwargs={})
        return self.formatter.dumps(message)

    async def send(self, messages: Sequence[tuple[str, BrokerMessage]]) -> None:
        """Each (stream, message), unless its like is still there. Raises what Redis raises."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for stream, message in messages:
                await self._add_once(
                    [stream, f"{stream}:keys"], [message.task_id, message.message], client=pipe
                )
            await pipe.execute()

    async def kick(self, message: BrokerMessage) -> None:
        stream = message.labels.get("queue_name") or self.streams[0]
        await self.send([(stream, message)])

    # -- receiving -------------------------------------------------------------------------------

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        while True:
            if not self._buffer:
                self._buffer = await self._survive(self._fetch)
            while self._buffer:
                entry = self._buffer.pop(0)
                yield AckableMessage(data=entry.data, ack=self._ack(entry))

    async def settling(self) -> None:
        """Delete what was settled, at once and together; runs until it is cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            await self._survive(self._settle)

    def _ack(self, entry: Entry) -> Callable[[], None]:
        def ack() -> None:
            self._settled.append(entry)
            self._bell.set()

        return ack

    async def _fetch(self) -> list[Entry]:
        now = time.monotonic()
        if now - self._reclaimed_at > RECLAIM_EVERY:
            found = await self._left_behind()
            self._reclaimed_at = now
            if found:
                return found
        most = max(1, min(self._free(), AT_ONCE))
        read = await self._read_in_order(self.streams, [WORKERS, self.consumer_name, most])
        if read:
            stream, entries = read
            pairs = [(id, dict(zip(f[::2], f[1::2], strict=True))) for id, f in entries]
            return [_entry(stream.decode(), id, fields) for id, fields in pairs]
        answer = await self.redis.xreadgroup(
            WORKERS,
            self.consumer_name,
            dict.fromkeys(self.streams, ">"),
            count=1,
            block=int(BLOCK * 1000),
        )
        return [
            _entry(stream.decode(), id, fields)
            for stream, entries in answer or ()
            for id, fields in entries
        ]

    async def _left_behind(self) -> list[Entry]:
        """What workers took and died with; for want of new messages nobody else would ask."""
        found: list[Entry] = []
        for stream in self.streams:
            entries = await reclaim(self.redis, stream, WORKERS, self.consumer_name, IDLE, AT_ONCE)
            found += [_entry(stream, id, fields) for id, fields in entries]
            await bury(self.redis, stream, WORKERS, FORGET)
        return found

    async def _settle(self) -> list[Entry]:
        settled, self._settled = self._settled, []
        try:
            async with self.redis.pipeline(transaction=False) as pipe:
                for entry in settled:
                    pipe.xack(entry.stream, WORKERS, entry.id)
                    pipe.xdel(entry.stream, entry.id)
                    pipe.hdel(f"{entry.stream}:keys", entry.key)
                await pipe.execute()
        except BaseException:
            self._settled[:0] = settled
            raise
        return []

    async def _survive(self, step: Callable[[], Any]) -> list[Entry]:
        """Take the step, again and again until Redis is there for it."""
        pause = 0.05
        while True:
            try:
                found: list[Entry] = await step()
                return found
            except AWAY as error:
                self._outage.notice(error)
            except ResponseError as error:
                if not any(word in str(error) for word in ("NOGROUP", "UNBLOCKED", "LOADING")):
                    log.error("Redis refuses", error=str(error)[:200])
                await self._make_groups()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _make_groups(self) -> None:
        with contextlib.suppress(*AWAY, ResponseError):
            for stream in self.streams:
                await make_group(self.redis, stream, WORKERS)


def _entry(stream: str, id: bytes, fields: dict[bytes, bytes]) -> Entry:
    return Entry(stream, id, fields.get(b"key", b""), fields[b"data"])
