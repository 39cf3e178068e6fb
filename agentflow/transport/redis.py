"""The transport between processes: one object per process with the parts its roles need."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

import orjson
import structlog
from redis.exceptions import ResponseError
from taskiq.message import BrokerMessage

from agentflow.transport.bus import Bus
from agentflow.transport.conversation import Chore, Message
from agentflow.transport.live import Limits
from agentflow.transport.local import CHORE, MAX_UNCLAIMED, Depth, unlimited
from agentflow.transport.redis_conversation import RedisWorkerSide, RedisWriterSide
from agentflow.transport.redis_link import (
    AWAY,
    CHORES,
    EVENTS,
    LEVELS,
    TOLD,
    Outage,
    calls,
    connect,
)
from agentflow.transport.redis_live import RedisInlet, RedisOutlet
from agentflow.transport.redis_permits import RedisLedger
from agentflow.transport.stream_broker import Free, StreamBroker
from agentflow.types import JobId

log = structlog.get_logger(__name__)

MEASURE_EVERY = 0.25
"""Seconds between two looks at how long the queues are."""


class RedisTransport:
    """`queues` are the providers whose calls this process sends or serves; `free` is how many
    more calls of one of them its worker takes; `depth` how many may lie here unclaimed."""

    def __init__(
        self,
        url: str,
        name: str,
        queues: Sequence[str],
        bus: Bus,
        free: Free,
        live: Limits,
        depth: Depth = unlimited,
    ) -> None:
        self._redis = connect(url)
        self._outage = Outage()
        self._bus, self._queues, self._depth = bus, list(queues), depth
        by_level = [calls(q, p) for p in (1, 0, -1) for q in queues] or [calls("none")]
        self.calls = StreamBroker(url, by_level, name, free)
        self.chores = StreamBroker(url, [CHORES], name, lambda _, handed: 8 - sum(handed.values()))
        self.ledger = RedisLedger(self._redis, name)
        self.writer_side = RedisWriterSide(self._redis, name)
        self.worker_side = RedisWorkerSide(self._redis, name)
        self.outlet = RedisOutlet(self._redis, live)
        self.inlet = RedisInlet(self._redis, name, live)
        self._lengths: dict[str, int] = {}
        self._under_way: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.Task[None]] = []
        self._rings: set[asyncio.Task[None]] = set()

    async def start(self, roles: frozenset[str]) -> None:
        """Begin what these roles need. Redis may be away; it is waited for in the background."""
        running = [self._measure()]
        if "writer" in roles:
            await self.writer_side.ready()
            self._reading = [asyncio.create_task(self.writer_side.run(), name="agentflow-hearing")]
        if "worker" in roles:
            running += [self.worker_side.run(), self.calls.settling(), self.chores.settling()]
            running += [self.outlet.run(), self.calls.keeping(), self.ledger.run()]
        if "web" in roles:
            running += [self._listen(), self.inlet.run()]
        await self._look()
        self._tasks = [asyncio.create_task(each, name="agentflow-redis") for each in running]

    async def stop_hearing(self) -> None:
        """The writer of this process takes nothing more; what it has is still answered."""
        await _cancel(self._reading)

    async def stop(self) -> None:
        await _cancel([*self._reading, *self._tasks])
        await self.ledger.flush()
        for broker in (self.calls, self.chores):
            await broker.shutdown()
        await self._redis.aclose()

    @property
    def missing(self) -> list[str]:
        """What keeps it from working, in words."""
        ended = [f"{task.get_name()} has stopped" for task in self._tasks if task.done()]
        return ended + ([] if self._lengths else ["Redis cannot be reached"])

    # -- the broker ------------------------------------------------------------------------------

    def room(self, queue: str) -> int:
        known = self._lengths.get(queue)
        return (
            0
            if known is None
            else self._depth(queue, MAX_UNCLAIMED) - known - self._under_way[queue]
        )

    def length(self, queue: str) -> int:
        """How many of its calls lie here, as of a moment ago."""
        return self._lengths.get(queue, 0)

    def stir(self) -> None:
        """The worker may have room for more."""
        self.calls.stir()

    async def send(self, messages: Sequence[Message], chores: Sequence[Chore]) -> None:
        """Ring for all of these. A ring that is lost is repeated by the job's alarm."""
        if not (messages or chores):
            return
        asked: list[tuple[str, BrokerMessage]] = []
        queues = Counter(_queue(message) for message in messages)
        for message in messages:
            key = f"{message.job_id}/{message.attempt}"
            packed = self.calls.packed(message.task, key, _plain(message))
            asked.append((calls(_queue(message), message.priority), packed))
        for chore in chores:
            if chore.kind == "stop":
                self.writer_side.stop_attempt(chore.worker or "", chore.job_id, chore.attempt)
                continue
            key = f"{chore.kind}/{chore.job_id}/{chore.attempt}"
            asked.append((CHORES, self.chores.packed(CHORE, key, _plain(chore))))
        self._under_way.update(queues)
        try:
            await self.calls.send(asked)
        except (*AWAY, ResponseError) as error:
            self._outage.notice(error, unsent=len(asked))
            self.writer_side.gap(True)  # to be sent again when Redis is back
        finally:
            self._under_way.subtract(queues)
            self._since.update(queues)
            for queue in queues.keys() & self._lengths.keys():
                self._lengths[queue] += queues[queue]

    def ring(self) -> None:
        """Wake one of the writers; whoever hears it reads the inbox."""
        if len(self._rings) < 2:  # one under way may be too early, the second is not
            task = asyncio.ensure_future(self._ring())
            self._rings.add(task)
            task.add_done_callback(self._rings.discard)

    async def _ring(self) -> None:
        with contextlib.suppress(*AWAY, ResponseError):
            await self._redis.xadd(EVENTS, {"said": b"[]"})

    # -- in the background -----------------------------------------------------------------------

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_EVERY)
            await self._look()

    async def _look(self) -> None:
        self._since.clear()
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for queue in self._queues:
                    for priority in (1, 0, -1):
                        pipe.xlen(calls(queue, priority))
                pipe.ping()
                lengths = (await pipe.execute())[:-1]
        except (*AWAY, ResponseError):
            self._lengths = {}  # nothing is sent while nobody can take it
            return
        by_queue = zip(*[iter(lengths)] * len(LEVELS), strict=True)
        self._lengths = {  # the answer may be older than what was sent meanwhile
            q: sum(n) + self._since[q] for q, n in zip(self._queues, by_queue, strict=True)
        }
        self._lengths.setdefault("", 0)

    async def _listen(self) -> None:
        """Pass on what changed to those who wait in this process."""
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(TOLD)
                    while True:
                        said = await channel.get_message(
                            ignore_subscribe_messages=True, timeout=1.0
                        )
                        if said is not None:
                            self._bus.told([JobId(id) for id in orjson.loads(said["data"])])
            except (*AWAY, ResponseError) as error:
                self._outage.notice(error)
                await asyncio.sleep(0.5)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)  # see `heed_cancellation`
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def _queue(message: Message) -> str:
    return message.task.partition(".")[0]


def _plain(value: Message | Chore) -> object:
    return orjson.loads(orjson.dumps(value))
