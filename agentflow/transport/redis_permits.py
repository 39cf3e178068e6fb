"""Permits that all workers take from Redis, by Redis's clock; see `permits`.

Of each limit there are a sorted set of leases (until when), one of calls (when they began) and two
of the lines that wait (when they asked first and last). A worker that dies loses its leases.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson
import structlog
from redis.exceptions import ResponseError

from agentflow.core.limits import Demand, Option
from agentflow.transport.permits import ASK_EVERY, BEGINS, FRESH, LONGEST_PAUSE, Refused, turned
from agentflow.transport.redis_link import (
    AWAY,
    PREFIX,
    Link,
    Outage,
    heed_cancellation,
    replies,
)
from agentflow.transport.redis_scripts import GIVE_BACK, PAUSE, RENEW, START, TAKE

log = structlog.get_logger(__name__)

LIMITS = f"{PREFIX}limits:"
PAUSES = f"{PREFIX}pauses"
"""Hash: until when (milliseconds of Redis's clock) the calls under a name rest."""

REPLIES = replies("")

LEASE = 15.0
"""Seconds after which a worker that was not heard of has lost its permits."""

PENDING = 5.0
"""Seconds for which a permit counts as a call that has not begun."""

LOOK_EVERY = 0.25
"""Seconds between two looks at what is paused."""

AWAY_REST = 0.5


class RedisLedger:
    """`worker` is the name under which this worker hears: a line that is first in a queue is told
    when a permit was given back."""

    def __init__(self, redis: Link, worker: str) -> None:
        self._redis, self._worker = redis, worker
        self._outage = Outage()
        self._take = redis.register_script(TAKE)
        self._scripts = {s: redis.register_script(s) for s in (START, GIVE_BACK, PAUSE, RENEW)}
        self._held: dict[str, Option] = {}
        self._pauses: dict[str, float] = {}
        self._said: list[tuple[str, list[Any]]] = []
        self._bell = asyncio.Event()
        self.freed: Callable[[str | None], None] = lambda _: None

    async def take(self, line: str, permit: str, demand: Demand) -> Option | Refused:
        options = turned(demand.options)
        times = [int(1000 * s) for s in (LEASE, PENDING, FRESH, ASK_EVERY, BEGINS)]
        name = f"{self._worker}|{line}"
        try:
            chosen, wait = await self._take(
                [PAUSES], [LIMITS, REPLIES, name, permit, *times, _packed(options)]
            )
        except (*AWAY, ResponseError) as error:
            self._outage.notice(error)
            return Refused(AWAY_REST)
        if not chosen:
            return Refused(wait / 1000)
        option: Option = options[chosen - 1]
        if option.bounds:
            self._held[permit] = option
        return option

    def started(self, permit: str, option: Option) -> None:
        names = [[b.name, _longest(b.rates)] for b in option.bounds if b.rates]
        if names:
            self._say(START, LIMITS, permit, orjson.dumps(names))

    def give_back(self, permit: str, option: Option, *, used: bool) -> None:
        self._held.pop(permit, None)
        names = [bound.name for bound in option.bounds]
        if names:
            said = orjson.dumps(names)
            self._say(GIVE_BACK, LIMITS, REPLIES, permit, int(used), said)

    def pause(self, name: str, seconds: float) -> None:
        seconds = min(seconds, LONGEST_PAUSE)
        until = time.monotonic() + seconds
        self._pauses[name] = max(until, self._pauses.get(name, 0.0))
        self._say(PAUSE, PAUSES, name, int(1000 * seconds))

    def paused(self, name: str) -> float:
        return max(0.0, self._pauses.get(name, 0.0) - time.monotonic())

    # -- in the background -----------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name="agentflow-permits-said")
            group.create_task(self._renew(), name="agentflow-permits-renewed")
            group.create_task(self._look(), name="agentflow-permits-paused")

    async def flush(self) -> None:
        """Say what is not said yet, once; what is lost now, a lease's end makes good."""
        said, self._said = self._said, []
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for script, values in said:
                    await self._scripts[script]([], values, client=pipe)
                await pipe.execute()
        except (*AWAY, ResponseError) as error:
            self._outage.notice(error)

    def _say(self, script: str, *values: Any) -> None:
        self._said.append((script, list(values)))
        self._bell.set()

    async def _send(self) -> None:
        while True:
            await self._bell.wait()
            self._bell.clear()
            await self.flush()
            heed_cancellation()

    async def _renew(self) -> None:
        """Also what a flush has lost: who holds a permit goes on holding it."""
        while True:
            await asyncio.sleep(LEASE / 3)
            held = [
                [permit, [b.name for b in option.bounds if b.concurrent is not None]]
                for permit, option in self._held.items()
            ]
            if held:
                self._say(RENEW, LIMITS, int(1000 * LEASE), orjson.dumps(held))

    async def _look(self) -> None:
        """Learn from the others who must rest: a call without limits asks nobody else."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    pipe.time()
                    pipe.hgetall(PAUSES)
                    (seconds, micros), found = await pipe.execute()
            except (*AWAY, ResponseError) as error:
                self._outage.notice(error)
                continue
            finally:
                heed_cancellation()
            now, here = 1000 * seconds + micros / 1000, time.monotonic()
            for name, until in found.items():
                left = (float(until) - now) / 1000
                self._pauses[name.decode()] = max(here + left, self._pauses.get(name.decode(), 0.0))
            self._pauses = {name: until for name, until in self._pauses.items() if until > here}


@lru_cache(maxsize=4096)
def _packed(options: tuple[Option, ...]) -> bytes:
    """The options as the script reads them."""
    return orjson.dumps(
        [
            {
                "pauses": option.pauses,
                "bounds": [
                    {
                        "name": bound.name,
                        "concurrent": bound.concurrent or 0,
                        "rates": [[amount, int(1000 * s)] for amount, s in bound.rates],
                        "longest": _longest(bound.rates),
                    }
                    for bound in option.bounds
                ],
            }
            for option in options
        ]
    )


def _longest(rates: tuple[tuple[int, float], ...]) -> int:
    return int(1000 * max((seconds for _, seconds in rates), default=0.0))
