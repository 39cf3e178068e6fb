"""The broker of Redis streams: what lies there, who reads it, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.patience import until
from support.streams import (
    HIGH,
    LOW,
    NORMAL,
    TASK,
    Bench,
    bench,
    first,
    hands,
    is_empty,
    length,
    lose_all,
    lose_entry,
    lose_stream,
)

from agentflow.transport.redis_link import WORKERS, Link
from agentflow.transport.stream_broker import AT_ONCE

DATABASES = ()


# -- what lies in a stream -------------------------------------------------------------------------


async def test_what_was_sent_before_there_was_a_worker_is_read(one: Bench) -> None:
    await one.send("a/1", "b/1")
    one.listen()
    await until(lambda: one.read == ["a/1", "b/1"])


async def test_a_settled_message_leaves_nothing_behind(one: Bench, redis: Link) -> None:
    await one.send("a/1")
    one.listen()

    async def gone() -> bool:
        return not await length(redis) and not await redis.hlen(f"{NORMAL}:keys")

    await until(gone)
    assert (await redis.xpending(NORMAL, WORKERS))["pending"] == 0


async def test_the_like_of_a_message_that_still_lies_there_is_not_added(
    one: Bench, redis: Link
) -> None:
    await one.send("a/1", "a/1")
    await one.send("a/1", "a/2")
    assert await length(redis) == 2


async def test_what_was_taken_and_not_settled_still_lies_there(one: Bench, redis: Link) -> None:
    await one.send("a/1")
    one.listen(ack=False)
    await until(lambda: one.read)
    await one.send("a/1")
    assert await length(redis) == 1


@pytest.mark.parametrize("lose", [lose_entry, lose_stream, lose_all])
async def test_what_was_lost_is_added_again(one: Bench, redis: Link, lose: Any) -> None:
    await one.send("a/1")
    await lose(redis)
    await one.send("a/1")
    assert await length(redis) == 1


async def test_a_late_settling_does_not_forget_the_message_that_came_after(
    one: Bench, redis: Link
) -> None:
    await one.send("a/1")
    acks = [m.ack async for m in first(one.broker, 1)]
    await redis.flushall()
    await one.send("a/1")
    one.listen(ack=False)
    await until(lambda: one.read)
    acks[0]()  # of the one that was lost
    await until(lambda: not one.broker._settled)
    await one.send("a/1")
    assert await length(redis) == 1


async def test_a_settling_that_is_cut_in_the_middle_leaves_no_message_that_nobody_gets(
    one: Bench, redis: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of it Redis still heard: the message is gone, or it is somebody's."""
    await one.send("a/1")
    said: list[Any] = []
    pipeline = one.broker.redis.pipeline

    def recorded(**options: Any) -> Any:
        pipe = pipeline(**options)
        monkeypatch.setattr(pipe, "execute", lambda: _nothing(said.append(pipe.command_stack)))
        return pipe

    acks = [m.ack async for m in first(one.broker, 1)]
    acks[0]()
    monkeypatch.setattr(one.broker.redis, "pipeline", recorded)
    await one.broker._settle()
    monkeypatch.undo()
    [stack] = said
    await redis.execute_command(*stack[0][0])
    there = await length(redis)
    assert there == (await redis.xpending(NORMAL, WORKERS))["pending"] or not there


async def _nothing(_: object) -> None: ...


async def test_what_is_no_message_of_ours_stops_nobody(one: Bench, redis: Link) -> None:
    await redis.xadd(NORMAL, {"something": "else"})
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    one.receive(1, work)
    await one.call("a/1")
    await until(lambda: done)
    await until(lambda: is_empty(redis))


# -- who reads what, and when ----------------------------------------------------------------------


class Work:
    """Lasts until the gate is open; `busy` are under way."""

    def __init__(self) -> None:
        self.gate, self.busy = asyncio.Event(), 0

    async def __call__(self) -> None:
        self.busy += 1
        await self.gate.wait()
        self.busy -= 1


async def test_the_more_urgent_is_read_first(redis_url: str) -> None:
    async with bench(redis_url, free=lambda *_: 1) as one:
        for stream, keys in ((LOW, "ab"), (NORMAL, "cd"), (HIGH, "ef")):
            await one.send(*keys, to=stream)
        one.listen()
        await until(lambda: len(one.read) == 6)
        assert "".join(one.read) == "efcdab"


async def test_two_workers_share_what_there_is(redis_url: str) -> None:
    async with bench(redis_url) as one, bench(redis_url, "w2") as two:
        await one.call(*(f"job{n}/1" for n in range(40)))
        for each in (one, two):
            each.receive(10, lambda: asyncio.sleep(0.03))
        await until(lambda: len(one.read + two.read) == 40)
        assert len(set(one.read + two.read)) == 40
        assert min(len(one.read), len(two.read)) >= AT_ONCE


@pytest.mark.parametrize("first", [1, 3, 4])
async def test_a_worker_reads_no_more_than_it_has_room_for(
    redis_url: str, redis: Link, first: int
) -> None:
    """Some of its hands are busy already when a crowd comes."""
    work = Work()
    async with (
        bench(redis_url, free=hands(4, lambda: work.busy)) as one,
        bench(redis_url, "w2") as two,
    ):
        await one.call(*(f"early{n}/1" for n in range(first)))
        one.receive(4, work)
        await one.call(*(f"late{n}/1" for n in range(6)))
        await until(lambda: work.busy == 4)
        two.receive(10, lambda: asyncio.sleep(0))
        await until(lambda: len(one.read + two.read) == first + 6)
        assert len(one.read) == 4
        work.gate.set()


async def test_what_was_handed_on_and_not_taken_up_fills_a_hand(
    redis_url: str, redis: Link
) -> None:
    async with bench(redis_url, free=hands(4, lambda: 0)) as one:
        await one.send("a/1", "b/1", "c/1")
        messages = one.broker.listen()
        for _ in range(3):
            await anext(messages)
        await one.send("d/1", "e/1", "f/1")
        await anext(messages)
        assert (await redis.xpending(NORMAL, WORKERS))["pending"] == 4
        await messages.aclose()


async def test_a_crowd_that_wakes_an_idle_worker_does_not_fill_its_hands_twice(
    redis_url: str,
) -> None:
    work = Work()
    async with (
        bench(redis_url, free=hands(2, lambda: work.busy)) as one,
        bench(redis_url, "w2") as two,
    ):
        one.receive(2, work)
        await asyncio.sleep(0.2)  # until it blocks
        for n, stream in enumerate([HIGH, NORMAL, LOW, NORMAL, NORMAL, HIGH]):
            await one.broker.send([(stream, one.broker.packed(TASK, f"{n}/1", f"{n}/1"))])
        await until(lambda: work.busy == 2)
        two.receive(10, lambda: asyncio.sleep(0))
        await until(lambda: len(one.read + two.read) == 6)
        assert len(one.read) == 2
        work.gate.set()


async def test_a_queue_without_room_does_not_hide_another(redis_url: str) -> None:
    one = Bench(redis_url, "w1", lambda queue, handed: 0 if queue == "fake" else 9)
    one.broker.streams.append("agentflow:calls:other:normal")
    await one.send("a/1", "b/1")
    one.listen()
    await asyncio.sleep(0.3)
    assert one.read == []
    await one.send("x/1", to="agentflow:calls:other:normal")
    await until(lambda: one.read == ["x/1"])
    await one.stop()
    await one.broker.shutdown()


async def test_what_has_room_again_is_read_at_once(redis_url: str) -> None:
    room = 0
    async with bench(redis_url, free=lambda *_: room) as one:
        await one.send("a/1")
        one.listen()
        await asyncio.sleep(0.2)
        assert one.read == []
        room = 9
        one.broker.stir()
        await until(lambda: one.read == ["a/1"])
