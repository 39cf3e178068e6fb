"""Those who use it: they submit, cancel, retry and listen, over whichever web process answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from support.crash.orders import Orders, prediction

from agentflow.client import ApiError, AsyncClient, Conflict, ServerUnreachable
from agentflow.client.job import AsyncJob

T = TypeVar("T")

AT_ONCE = 100
PATIENCE = 120.0
"""Seconds until a request that nobody answers is a failure of the test."""


@dataclass
class Clients:
    """`accepted` holds what the API said yes to; `broken` what it should not have said."""

    urls: list[str]
    dice: random.Random
    orders: Orders = prediction
    accepted: set[str] = field(default_factory=set)
    canceled: set[str] = field(default_factory=set)
    """Jobs whose cancel was answered 2xx while they were open."""
    broken: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._at = [AsyncClient(url, timeout=10, retry_for=1.0) for url in self.urls]
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def close(self) -> None:
        for client in self._at:
            await client.close()

    async def submit_all(self, jobs: int, rate: float) -> None:
        """So many jobs, at most so many a second; returns when those who follow them are done."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(jobs):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                await self._gate.acquire()
                group.create_task(self._one(number))

    async def retry_handlers(self) -> None:
        """As a person would: run again what was set aside because it took too long."""
        async for run in self._at[0].handler_runs(status="parked"):
            self.counts["handlers retried"] += 1
            await self._at[0].retry_handler(run["id"])

    async def _one(self, number: int) -> None:
        asked, priority = self.orders(number, self.dice), self.dice.choice([-1, 0, 0, 0, 1])
        try:
            job = await self._anywhere(
                lambda at: at.submit(
                    asked.task,
                    asked.input,
                    idempotency_key=f"order-{number}",
                    priority=priority,
                    **asked.more,
                )
            )
        finally:
            self._gate.release()
        if job is None:
            self.broken.append(f"nobody took job {number}")
            return
        self.accepted.add(job.id)
        await self._follow(number, job)

    async def _follow(self, number: int, job: AsyncJob) -> None:
        if number % 10 == 5:
            await asyncio.sleep(self.dice.uniform(0.0, 1.5))
            await self._cancel(job.id)
        elif number % 10 == 1:
            await self._listen(job.id)
        elif number % 20 == 10:
            await self._retry(job.id)

    async def _anywhere(self, ask: Callable[[AsyncClient], Awaitable[T]]) -> T | None:
        """The answer of the first web process that gives one; None after all patience."""
        until = time.monotonic() + PATIENCE
        first = self.dice.randrange(len(self._at))
        while time.monotonic() < until:
            for client in (*self._at[first:], *self._at[:first]):
                try:
                    return await ask(client)
                except ServerUnreachable:
                    self.counts["unanswered"] += 1
                except ApiError as error:
                    self.broken.append(f"{client.url} said {error.status}: {error}")
            await asyncio.sleep(0.1)
        return None

    async def _cancel(self, id: str) -> None:
        async def cancel(at: AsyncClient) -> AsyncJob:
            return await (await at.job(id)).cancel()

        job = await self._anywhere(cancel)
        if job is None:
            self.broken.append(f"nobody took the cancel of {id}")
        elif not job.final:  # where it was final already, nothing is stored
            self.canceled.add(id)

    async def _retry(self, id: str) -> None:
        """Once it is final; a `Conflict` says that it is not."""

        async def retry(at: AsyncClient) -> AsyncJob | None:
            old = await at.job(id)
            try:
                return await old.retry(idempotency_key=f"again-{id}")
            except Conflict:
                return None

        for _ in range(int(PATIENCE)):
            job = await self._anywhere(retry)
            if job is not None:
                self.counts["retried"] += 1
                self.accepted.add(job.id)
                return
            await asyncio.sleep(1.0)
        self.counts["not retried"] += 1

    async def _listen(self, id: str) -> None:
        """Every entry, in order, once, up to the last, whatever breaks in between."""
        seen: list[int] = []

        async def listen(at: AsyncClient) -> bool:
            async for event in (await at.job(id)).events(after=seen[-1] if seen else -1):
                seen.append(event.seq)
                if event.ends:
                    return True
            return False

        until = time.monotonic() + 3 * PATIENCE
        ended = False
        while not ended and time.monotonic() < until:
            try:
                async with asyncio.timeout(PATIENCE):
                    ended = bool(await self._anywhere(listen))
            except TimeoutError:
                continue
        self.counts["listened"] += 1
        if not ended or seen != list(range(len(seen))):
            self.broken.append(f"a listener of {id} heard {seen}, ended: {ended}")
