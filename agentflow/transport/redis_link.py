"""The connection to Redis and the names of everything kept there.

Redis holds nothing that cannot be lost: doorbells, and what is said between workers and the writer
until it is answered. The database is the truth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import structlog
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ResponseError

log = structlog.get_logger(__name__)

PREFIX = "agentflow:"
EVENTS = f"{PREFIX}events"
"""Stream: what workers say to the writers. An entry is deleted once all of it is answered."""
WRITERS = "writers"
"""The consumer group that the writers share on `EVENTS`."""
EPOCH = f"{PREFIX}epoch"
"""A random word, written when it is missing: it changes when Redis has lost its data."""
TOLD = f"{PREFIX}told"
"""Channel: the ids of jobs that changed, for those who wait for them."""
CHORES = f"{PREFIX}chores"
"""Stream: work that is harmless to repeat."""
WORKERS = "workers"
"""The consumer group that the workers share on the streams of calls and chores."""

LEVELS = ("high", "normal", "low")
"""Priorities above 0, of 0, and below: each a stream of its own for each provider."""

BLOCK = 2.0
"""Seconds of one blocking read; shorter ones were seen to swallow cancellations."""

SAY_EVERY = 30.0

AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, RuntimeError)
"""What is raised while Redis cannot be reached; the last by uvloop, for writing to a connection
that was lost a moment ago."""

PASSING = ("NOGROUP", "UNBLOCKED", "LOADING")
"""Words of its refusals after it was flushed, or while it starts."""

_BURY = """
for _, found in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #found, 2 do consumer[found[i]] = found[i + 1] end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
"""
"""In one step: what a consumer read meanwhile would be lost with it."""

Link: TypeAlias = Any
"""A `redis.asyncio.Redis`, whose types promise every command all answers of all protocols."""


def connect(url: str, **options: Any) -> Link:
    """A client with a pool of its own; it connects on first use and again after a failure."""
    return Redis.from_url(
        url,
        socket_connect_timeout=3.0,
        socket_timeout=BLOCK + 4.0,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),  # a pool keeps dead connections
        retry_on_error=[exceptions.ConnectionError],
        **options,
    )


class Outage:
    """Says in the log that Redis is away: at first, and then now and then."""

    def __init__(self) -> None:
        self._again = 0.0

    def notice(self, error: Exception, **fields: object) -> None:
        if time.monotonic() >= self._again:
            self._again = time.monotonic() + SAY_EVERY
            log.warning("Redis is away", error=str(error)[:200], **fields)


def heed_cancellation() -> None:
    """Raise the `CancelledError` that came while redis-py was sending: it sends by `wait_for`,
    which in Python 3.11 swallows it (python/cpython#86296). For loops that nothing else ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def calls(queue: str, priority: int = 0) -> str:
    """The stream of one provider's calls of one priority."""
    level = LEVELS[0] if priority > 0 else LEVELS[1] if priority == 0 else LEVELS[2]
    return f"{PREFIX}calls:{queue}:{level}"


def queue_of(stream: str) -> str:
    """Whose calls lie in the stream; of one that is no stream of calls, its own name."""
    parts = stream.split(":")
    return parts[2] if len(parts) == 4 else stream


def replies(worker: str) -> str:
    """List: what the writers answer one worker."""
    return f"{PREFIX}replies:{worker}"


def live(job: str) -> str:
    """Stream: the newest live text of one job, for some minutes."""
    return f"{PREFIX}live:{job}"


def nudges(process: str) -> str:
    """Stream of one entry: ends the blocking read of one web process."""
    return f"{PREFIX}nudge:{process}"


async def make_group(redis: Link, stream: str, group: str) -> None:
    """A consumer group that reads the stream from its beginning; it may be there already."""
    try:
        await redis.xgroup_create(stream, group, id="0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


async def bury(redis: Link, stream: str, group: str, idle: float) -> None:
    """Delete the consumers that were silent for `idle` seconds and hold nothing."""
    await redis.eval(_BURY, 1, stream, group, int(idle * 1000))


async def reclaim(
    redis: Link, stream: str, group: str, consumer: str, idle: float, most: int
) -> Sequence[tuple[bytes, dict[bytes, bytes]]]:
    """Entries whose reader has not settled them for `idle` seconds; ours now."""
    claimed = await redis.xautoclaim(
        stream, group, consumer, min_idle_time=int(idle * 1000), count=most
    )
    return [(id, fields) for id, fields in claimed[1] if fields]
