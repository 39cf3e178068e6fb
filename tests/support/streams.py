"""Rings for work on Redis streams: both ends of the broker, and what is taken from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver

from agentflow.transport.redis_link import Link
from agentflow.transport.stream_broker import Free, StreamBroker

TASK = "fake.work"
HIGH, NORMAL, LOW = STREAMS = [f"agentflow:calls:fake:{x}" for x in ("high", "normal", "low")]


class Bench:
    """One end of the broker: `read` are the keys of the messages it listened to."""

    def __init__(self, url: str, name: str, free: Free = lambda queue, handed: 100) -> None:
        self.broker = StreamBroker(url, STREAMS, name, free)
        self.read: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []

    async def send(self, *keys: str, to: str = NORMAL) -> None:
        await self.broker.send([(to, self.broker.packed(TASK, key, {})) for key in keys])

    def listen(self, ack: bool = True) -> Bench:
        self.tasks += [
            asyncio.create_task(self._listen(ack)),
            asyncio.create_task(self.broker.settling()),
        ]
        return self

    async def _listen(self, ack: bool) -> None:
        async for message in self.broker.listen():
            self.read.append(self.broker.formatter.loads(message.data).task_id)
            if ack:
                message.ack()

    def receive(self, at_once: int, work: Callable[[], Any]) -> Bench:
        """As a worker does it, through Taskiq's receiver."""

        async def task(key: str) -> None:
            self.read.append(key)
            await work()

        self.broker.register_task(task, task_name=TASK)
        receiver = Receiver(
            self.broker,
            ack_type=AcknowledgeType.WHEN_RECEIVED,
            max_async_tasks=at_once,
            max_prefetch=0,
            run_startup=False,
            validate_params=False,
            wait_tasks_timeout=0.1,
        )
        self.tasks += [
            asyncio.create_task(receiver.listen(asyncio.Event())),
            asyncio.create_task(self.broker.settling()),
        ]
        return self

    async def call(self, *keys: str) -> None:
        """Messages that say their key to the task."""
        await self.broker.send([(NORMAL, self.broker.packed(TASK, key, key)) for key in keys])

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def die(self) -> None:
        """Without a word to Redis."""
        await self.stop()
        await self.broker.redis.aclose()


@asynccontextmanager
async def bench(url: str, name: str = "w1", **options: Any) -> AsyncIterator[Bench]:
    made = Bench(url, name, **options)
    try:
        yield made
    finally:
        await made.stop()
        await made.broker.shutdown()


def hands(count: int, busy: Callable[[], int]) -> Free:
    return lambda queue, handed: count - busy() - sum(handed.values())


async def length(redis: Link, stream: str = NORMAL) -> int:
    said: int = await redis.xlen(stream)
    return said


async def lose_entry(redis: Link) -> None:
    [(id, _)] = await redis.xrange(NORMAL)
    await redis.xdel(NORMAL, id)


async def lose_stream(redis: Link) -> None:
    await redis.delete(NORMAL)


async def lose_all(redis: Link) -> None:
    await redis.flushall()


async def first(broker: StreamBroker, number: int) -> AsyncIterator[Any]:
    messages = broker.listen()
    for _ in range(number):
        yield await anext(messages)
    await messages.aclose()


async def is_empty(redis: Link) -> bool:
    return await length(redis) == 0
