"""What the drivers raise for a connection that was lost a moment ago, in words of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from support.patience import PATIENCE
from tortoise.exceptions import DBConnectionError

from agentflow.store.postgres_asyncpg import _translated
from agentflow.transport.redis_conversation import RedisWorkerSide


class Lost:
    """Redis as redis-py shows it over uvloop: each command's first try meets a closed transport."""

    def __init__(self) -> None:
        self.tried: set[str] = set()
        self.heard = asyncio.Event()

    def _try(self, command: str) -> None:
        if command not in self.tried:
            self.tried.add(command)
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>")

    async def xadd(self, *_: Any) -> bytes:
        self._try("xadd")
        self.heard.set()
        return b"1-0"

    async def blmpop(self, *_: Any, **__: Any) -> None:
        self._try("blmpop")
        await asyncio.sleep(3600)


async def test_a_write_to_a_lost_connection_is_repeated_and_ends_nothing() -> None:
    redis = Lost()
    side = RedisWorkerSide(redis, "worker")
    running = asyncio.create_task(side.run())
    side.beat("worker", [])
    await asyncio.wait_for(redis.heard.wait(), PATIENCE)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_connection_ended_in_mid_air_is_the_database_away() -> None:
    async def ended() -> None:
        raise asyncpg.InternalClientError("cannot switch to state 11")

    with pytest.raises(DBConnectionError):
        await _translated(ended)
