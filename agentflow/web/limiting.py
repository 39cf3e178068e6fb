"""How much is taken in: requests per caller, open jobs per tenant, unknown keys per address."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog
from starlette.exceptions import HTTPException

from agentflow.store.queries import Reader

if TYPE_CHECKING:  # imported where it is used: it takes a tenth of a second, and may be off
    from limits import RateLimitItem
    from limits.aio.strategies import RateLimiter

log = structlog.get_logger(__name__)

PATIENCE = 0.5
"""Seconds for Redis to answer."""

PAUSE = 2.0
"""Seconds in which Redis is not asked again after it did not answer."""

AGAIN = 5
"""Seconds after which a submit into a full backlog may be tried again."""


class RateLimits:
    """Requests of one caller in a window of time, counted here or, for several processes, in
    Redis. Who cannot be counted, because Redis is away, is let through."""

    def __init__(self, redis_url: str | None = None) -> None:
        self._redis_url = redis_url
        self._pool: Any = None
        self._limiter: RateLimiter | None = None
        self._rest_until = 0.0

    async def check(self, rate: str, who: str) -> None:
        """Count a request, `rate` as in `100/second;2000/minute`. Raises 429."""
        if time.monotonic() < self._rest_until:
            return
        try:
            over = await self._over(rate, who)
        except Exception as error:  # whatever its client raises, Redis is away
            self._rest_until = time.monotonic() + PAUSE
            log.warning("Rates are not counted", error=type(error).__name__)
            return
        if over is not None:
            raise HTTPException(429, "Too many requests.", {"Retry-After": str(over)})

    async def _over(self, rate: str, who: str) -> int | None:
        """Seconds until the window ends that is full; the shortest is asked first, so that what
        it refuses uses up no longer one."""
        self._limiter = self._limiter or self._start()
        for limit in parsed(rate):
            if not await self._limiter.hit(limit, who):
                ends = (await self._limiter.get_window_stats(limit, who)).reset_time
                return max(1, math.ceil(ends - time.time()))
        return None

    def _start(self) -> RateLimiter:
        from limits.aio.storage import MemoryStorage, RedisStorage
        from limits.aio.strategies import FixedWindowRateLimiter

        if self._redis_url is None:
            return FixedWindowRateLimiter(MemoryStorage())
        from redis.asyncio import ConnectionPool

        self._pool = ConnectionPool.from_url(
            self._redis_url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE
        )
        return FixedWindowRateLimiter(
            RedisStorage(
                "async+redis://",
                implementation="redispy",
                key_prefix="agentflow-rate",
                connection_pool=self._pool,
            )
        )

    async def close(self) -> None:
        pool, self._pool, self._limiter = self._pool, None, None
        if pool is not None:
            await pool.disconnect()


@lru_cache(maxsize=8)
def parsed(rate: str) -> Sequence[RateLimitItem]:
    """The shortest window first. Raises `ValueError`."""
    from limits import parse_many

    return sorted(parse_many(rate), key=lambda limit: limit.get_expiry())


Count: TypeAlias = Callable[[str, int], Awaitable[int]]


async def waiting_jobs(tenant: str, most: int) -> int:
    """The tenant's jobs that wait for a worker, counted up to `most`."""
    sql = Reader()
    rows = await sql.rows(
        'SELECT COUNT(*) AS "n" FROM (SELECT 1 FROM "agentflow_jobs"'
        f' WHERE "tenant" = {sql.mark(1)}'
        " AND \"status\" IN ('queued', 'scheduled')"
        f' LIMIT {most}) AS "waiting"',
        [tenant],
    )
    return int(rows[0]["n"])


class Backlog:
    """Whether a tenant's backlog has room. An answer holds for a second, or, where counting takes
    long, for as long as keeps counting to a twentieth of the time."""

    def __init__(self, count: Count = waiting_jobs) -> None:
        self._count = count
        self._full: dict[str, bool] = {}
        self._until: dict[str, float] = {}
        self._counting: dict[str, asyncio.Lock] = {}

    async def check(self, tenant: str, most: int) -> None:
        """Raises 503 if `most` jobs wait already, and `StoreUnavailable`."""
        lock = self._counting.setdefault(tenant, asyncio.Lock())
        if time.monotonic() >= self._until.get(tenant, 0.0) and not lock.locked():
            async with lock:
                began = time.monotonic()
                self._full[tenant] = await self._count(tenant, most) >= most
                ended = time.monotonic()
                self._until[tenant] = ended + max(1.0, 20 * (ended - began))
        if self._full.get(tenant, False):
            said = f"{most} jobs are waiting already; submit again when some are done."
            raise HTTPException(503, said, {"Retry-After": str(AGAIN)})


class Misses:
    """Unknown keys asked for from one address, within a minute. It forgets addresses before it
    fills the memory."""

    WINDOW = timedelta(minutes=1)
    ALLOWED = 60
    ADDRESSES = 10_000

    def __init__(self) -> None:
        self._counted: dict[str, tuple[datetime, int]] = {}

    def count(self, address: str, now: datetime) -> None:
        """Raises 429 if there were too many."""
        began, count = self._counted.pop(address, (now, 0))
        if not timedelta() <= now - began < self.WINDOW:
            began, count = now, 0
        while len(self._counted) >= self.ADDRESSES:
            self._counted.pop(next(iter(self._counted)))
        self._counted[address] = (began, min(count + 1, self.ALLOWED + 1))
        if count >= self.ALLOWED:
            left = (began + self.WINDOW - now).total_seconds()
            after = {"Retry-After": str(max(1, math.ceil(left)))}
            raise HTTPException(429, "Too many unknown API keys from this address.", after)

    def forgive(self, address: str) -> None:
        """The last one was known after all."""
        began, count = self._counted.get(address, (None, 0))
        if began is not None:
            self._counted[address] = (began, max(0, count - 1))
