"""Workers and writers on one Redis, and what they say to each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from agentflow.core.events import Envelope, Progressed, Source
from agentflow.transport.conversation import Claim, Denied, Granted
from agentflow.transport.redis_conversation import RedisWorkerSide, RedisWriterSide
from agentflow.transport.redis_link import EVENTS, Link, connect
from agentflow.types import JobId

THEN = datetime(2026, 1, 31, 12, tzinfo=UTC)
GRANTED = Granted(5.0, THEN, True)


def job(number: int = 1) -> JobId:
    return JobId(f"job_{number:032}")


def claim(number: int = 1, worker: str = "w1") -> Claim:
    return Claim(job(number), 1, f"nonce_{number}", worker, "fake.work")


def report(number: int = 1, id: str = "out:1") -> Envelope:
    return Envelope(id, Source.WORKER, THEN, job(number), Progressed(fraction=0.5, attempt=1))


class Writer:
    """Answers what it hears, if it is not `mute`. `heard` is all it took, `gaps` what it was told
    of its hearing."""

    def __init__(self, redis: Link, name: str) -> None:
        self.side = RedisWriterSide(redis, name)
        self.side.gap = lambda lost: self.gaps.append(lost)
        self.heard: list[Any] = []
        self.gaps: list[bool] = []
        self.mute = self.denies = False
        self.reading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        while True:
            await self.side.bell.wait()
            self.side.bell.clear()
            if not self.mute:
                await self.turn()

    async def turn(self, most: int = 200) -> None:
        while taken := self.side.take(most):
            self.heard += [each.said for each in taken]
            for each in taken:
                each.reply(self._answer(each.said))
            await self.side.flush()
        await self.side.flush()

    def _answer(self, said: object) -> Granted | Denied | None:
        if not isinstance(said, Claim):
            return None
        return Denied("queued") if self.denies else GRANTED


class Talk:
    """Workers and writers on one Redis; each has a connection of its own."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url, self._stack = url, stack
        self.redis = self.link()

    def link(self, url: str | None = None) -> Link:
        link = connect(url or self.url)
        self._stack.push_async_callback(link.aclose)
        return link

    def worker(self, name: str = "w1", url: str | None = None) -> RedisWorkerSide:
        side = RedisWorkerSide(self.link(url), name)
        self.spawn(side.run())
        return side

    async def writer(self, name: str = "writer1", url: str | None = None) -> Writer:
        made = Writer(self.link(url), name)
        await made.side.ready()
        made.gaps.clear()  # a Redis that is new has lost everything
        made.reading = self.spawn(made.side.run())
        self.spawn(made.run())
        return made

    def spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._stack.push_async_callback(stopped, task)
        return task

    async def entries(self) -> int:
        return int(await self.redis.xlen(EVENTS))

    async def added(self) -> int:
        return int((await self.redis.xinfo_stream(EVENTS))["entries-added"])


async def stopped(task: asyncio.Task[Any]) -> None:
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)


@asynccontextmanager
async def talking(url: str) -> AsyncIterator[Talk]:
    async with AsyncExitStack() as stack:
        yield Talk(url, stack)
