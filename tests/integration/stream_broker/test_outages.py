"""The broker of Redis streams, whatever Redis goes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions
from support.patience import until
from support.proxy import Proxy
from support.servers import RedisServer
from support.streams import NORMAL, STREAMS, Bench, bench, is_empty, length, lose_all, lose_stream

from agentflow.transport.redis_link import WORKERS, Link

DATABASES = ()


@pytest.mark.parametrize("keep", [True, False])
async def test_listening_survives_a_restart(own_redis: RedisServer, keep: bool) -> None:
    async with bench(own_redis.url()) as one:
        one.listen()
        await one.send("a/1")
        await until(lambda: one.read == ["a/1"])
        own_redis.kill()
        await asyncio.sleep(0.3)
        own_redis.start(keep=keep)
        await one.send("b/1")
        await until(lambda: one.read == ["a/1", "b/1"])


async def test_what_waited_in_redis_outlives_a_restart(own_redis: RedisServer) -> None:
    async with bench(own_redis.url()) as one:
        await one.send("a/1", "b/1")
        own_redis.kill()
        own_redis.start()
        await one.send("a/1")
        one.listen()
        await until(lambda: len(one.read) == 2)
        assert one.read == ["a/1", "b/1"]


@pytest.mark.parametrize("lose", [lose_stream, lose_all])
async def test_listening_survives_what_is_deleted_under_it(
    one: Bench, redis: Link, lose: Any
) -> None:
    one.listen()
    await one.send("a/1")
    await until(lambda: one.read == ["a/1"])
    for key in ("b/1", "c/1"):
        await lose(redis)
        await one.send(key)
        await until(lambda k=key: one.read[-1] == k)


async def test_listening_survives_a_group_that_is_gone(one: Bench, redis: Link) -> None:
    one.listen()
    await one.send("a/1")
    await until(lambda: one.read)
    for stream in STREAMS:
        await redis.xgroup_destroy(stream, WORKERS)
    await one.send("b/1")
    await until(lambda: one.read[-1] == "b/1")


@asynccontextmanager
async def afar(server: RedisServer) -> AsyncIterator[tuple[Proxy, Bench]]:
    """A worker that reaches Redis through a proxy."""
    async with (
        Proxy("127.0.0.1", server.port) as proxy,
        bench(f"redis://127.0.0.1:{proxy.port}/0", "far") as far,
    ):
        yield proxy, far


async def test_listening_survives_a_cut_of_the_link(redis_server: RedisServer, one: Bench) -> None:
    async with afar(redis_server) as (proxy, far):
        far.listen()
        await one.send("a/1")
        await until(lambda: far.read == ["a/1"])
        proxy.cut()
        await one.send("b/1")
        await asyncio.sleep(1.0)
        proxy.heal()
        await until(lambda: far.read[-1] == "b/1")


async def test_what_was_on_its_way_when_the_link_broke_is_read_again(
    redis_server: RedisServer, one: Bench, redis: Link
) -> None:
    async with afar(redis_server) as (proxy, far):
        far.listen()
        await one.send("a/1")
        await until(lambda: far.read == ["a/1"])
        await until(lambda: is_empty(redis))
        await asyncio.sleep(0.2)  # until it blocks
        proxy.cut("blackhole")
        await one.send("b/1")
        await until(lambda: _is_taken(redis))
        proxy.cut("reset")
        await asyncio.sleep(0.2)
        proxy.heal()
        await until(lambda: far.read == ["a/1", "b/1"])


async def _is_taken(redis: Link) -> bool:
    return (await redis.xpending(NORMAL, WORKERS))["pending"] == 1


async def test_what_was_settled_while_redis_was_away_is_settled_afterwards(
    redis_server: RedisServer, one: Bench, redis: Link
) -> None:
    async with afar(redis_server) as (proxy, far):
        await one.send("a/1")
        far.listen(ack=False)
        await until(lambda: far.read)
        proxy.cut()
        far.broker._ack(next(iter(far.broker._handed)))()
        await asyncio.sleep(0.3)
        assert await length(redis) == 1
        proxy.heal()
        await until(lambda: is_empty(redis))


async def test_sending_says_that_redis_is_away(own_redis: RedisServer) -> None:
    async with bench(own_redis.url()) as one:
        own_redis.kill()
        with pytest.raises(exceptions.ConnectionError):
            await one.send("a/1")
