"""Rings for work on Redis streams: read, settled, taken over; whatever Redis goes through."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from redis import exceptions
from support.cli import PROGRAM, clean
from support.patience import PATIENCE
from support.proxy import Proxy
from support.servers import RedisServer
from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver

from agentflow.transport import stream_broker
from agentflow.transport.conversation import Message
from agentflow.transport.redis_link import WORKERS, Link, calls, connect
from agentflow.transport.stream_broker import AT_ONCE, Free, StreamBroker
from agentflow.types import JobId, Token, utcnow

DATABASES = ()

HOUR = timedelta(hours=1)

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


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Link]:
    link = connect(redis_url)
    yield link
    await link.aclose()


@pytest_asyncio.fixture
async def one(redis_url: str) -> AsyncIterator[Bench]:
    async with bench(redis_url) as made:
        yield made


def hands(count: int, busy: Callable[[], int]) -> Free:
    return lambda queue, handed: count - busy() - sum(handed.values())


async def until(true: Callable[[], Any], seconds: float = PATIENCE) -> None:
    async with asyncio.timeout(seconds):
        while True:
            said = true()
            if await said if asyncio.iscoroutine(said) else said:
                return
            await asyncio.sleep(0.01)


async def length(redis: Link, stream: str = NORMAL) -> int:
    said: int = await redis.xlen(stream)
    return said


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


async def lose_entry(redis: Link) -> None:
    [(id, _)] = await redis.xrange(NORMAL)
    await redis.xdel(NORMAL, id)


async def lose_stream(redis: Link) -> None:
    await redis.delete(NORMAL)


async def lose_all(redis: Link) -> None:
    await redis.flushall()


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
    acks = [m.ack async for m in _first(one.broker, 1)]
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

    acks = [m.ack async for m in _first(one.broker, 1)]
    acks[0]()
    monkeypatch.setattr(one.broker.redis, "pipeline", recorded)
    await one.broker._settle()
    monkeypatch.undo()
    [stack] = said
    await redis.execute_command(*stack[0][0])
    there = await length(redis)
    assert there == (await redis.xpending(NORMAL, WORKERS))["pending"] or not there


async def _nothing(_: object) -> None: ...


async def _first(broker: StreamBroker, number: int) -> AsyncIterator[Any]:
    messages = broker.listen()
    for _ in range(number):
        yield await anext(messages)
    await messages.aclose()


async def test_what_is_no_message_of_ours_stops_nobody(one: Bench, redis: Link) -> None:
    await redis.xadd(NORMAL, {"something": "else"})
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    one.receive(1, work)
    await one.call("a/1")
    await until(lambda: done)
    await until(lambda: _is_empty(redis))


async def _is_empty(redis: Link) -> bool:
    return await length(redis) == 0


# -- who reads what, and when ----------------------------------------------------------------------


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
    gate = asyncio.Event()
    busy = 0

    async def work() -> None:
        nonlocal busy
        busy += 1
        await gate.wait()
        busy -= 1

    async with bench(redis_url, free=hands(4, lambda: busy)) as one, bench(redis_url, "w2") as two:
        await one.call(*(f"early{n}/1" for n in range(first)))
        one.receive(4, work)
        await one.call(*(f"late{n}/1" for n in range(6)))
        await until(lambda: busy == 4)
        two.receive(10, lambda: asyncio.sleep(0))
        await until(lambda: len(one.read + two.read) == first + 6)
        assert len(one.read) == 4
        gate.set()


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
    gate = asyncio.Event()
    busy = 0

    async def work() -> None:
        nonlocal busy
        busy += 1
        await gate.wait()
        busy -= 1

    async with bench(redis_url, free=hands(2, lambda: busy)) as one, bench(redis_url, "w2") as two:
        one.receive(2, work)
        await asyncio.sleep(0.2)  # until it blocks
        for n, stream in enumerate([HIGH, NORMAL, LOW, NORMAL, NORMAL, HIGH]):
            await one.broker.send([(stream, one.broker.packed(TASK, f"{n}/1", f"{n}/1"))])
        await until(lambda: busy == 2)
        two.receive(10, lambda: asyncio.sleep(0))
        await until(lambda: len(one.read + two.read) == 6)
        assert len(one.read) == 2
        gate.set()


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


# -- workers that end ------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_broker, "IDLE", 0.4)
    monkeypatch.setattr(stream_broker, "RECLAIM_EVERY", 0.1)
    monkeypatch.setattr(stream_broker, "BLOCK", 0.2)


@pytest.mark.usefixtures("impatient")
async def test_what_waits_in_a_worker_that_lives_is_not_taken_over(redis_url: str) -> None:
    """It is not acknowledged before it is taken up; if the worker dies, another has it."""
    async with bench(redis_url) as one, bench(redis_url, "w2") as two:
        await one.send("a/1", "b/1")
        one.listen(ack=False)
        keeping = asyncio.create_task(one.broker.keeping())
        await until(lambda: one.read == ["a/1", "b/1"])
        two.listen()
        await asyncio.sleep(1.5)
        assert two.read == []
        await one.send("a/1")
        await asyncio.sleep(0.2)
        assert one.read + two.read == ["a/1", "b/1"], "its like is not added while it waits"
        keeping.cancel()
        await one.die()
        await until(lambda: sorted(two.read) == ["a/1", "b/1"])


@pytest.mark.usefixtures("impatient")
async def test_what_a_killed_worker_had_is_taken_over_though_nothing_new_comes(
    one: Bench, redis_url: str, redis: Link
) -> None:
    dead = Bench(redis_url, "dead")
    await dead.send("a/1", "b/1", "c/1")
    dead.listen(ack=False)
    await until(lambda: len(dead.read) == 3)
    await dead.die()
    one.listen()
    await until(lambda: one.read == ["a/1", "b/1", "c/1"])
    await until(lambda: _is_empty(redis))


@pytest.mark.usefixtures("impatient")
async def test_what_a_slow_worker_works_on_is_nobody_elses(one: Bench, redis_url: str) -> None:
    async with bench(redis_url, "w2") as two:
        one.receive(2, lambda: asyncio.sleep(1.2))
        await one.call("a/1")
        await until(lambda: one.read)
        two.listen()
        await asyncio.sleep(1.0)
        assert (one.read, two.read) == (["a/1"], [])


@pytest.mark.usefixtures("impatient")
async def test_workers_that_fell_silent_are_forgotten_and_live_ones_are_not(
    one: Bench, redis_url: str, redis: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_broker, "FORGET", 0.4)
    async with bench(redis_url, "w2") as two:
        dead = Bench(redis_url, "dead").listen()
        await one.send("a/1")
        await until(lambda: dead.read and _is_empty(redis))
        await dead.die()
        assert await consumers(redis) == {b"dead"}
        one.listen()
        two.listen()
        await until(lambda: _forgotten(redis, b"dead"))
        await one.send("b/1", "c/1")
        await until(lambda: sorted(one.read + two.read) == ["b/1", "c/1"])


async def consumers(redis: Link) -> set[bytes]:
    return {each["name"] for each in await redis.xinfo_consumers(NORMAL, WORKERS)}


async def _forgotten(redis: Link, name: bytes) -> bool:
    return name not in await consumers(redis)


@pytest.mark.usefixtures("impatient")
async def test_a_silent_worker_that_still_holds_something_is_not_forgotten(
    redis_url: str, redis: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages would be lost with it."""
    monkeypatch.setattr(stream_broker, "FORGET", 0.1)
    monkeypatch.setattr(stream_broker, "IDLE", 1.0)
    dead = Bench(redis_url, "dead")
    await dead.send("a/1")
    dead.listen(ack=False)
    await until(lambda: dead.read)
    await dead.die()
    async with bench(redis_url) as one:
        one.listen()
        await until(lambda: one.read == ["a/1"])


async def test_what_was_read_and_not_handed_on_is_given_back(redis_url: str, redis: Link) -> None:
    async with bench(redis_url) as leaving, bench(redis_url, "w2") as two:
        await leaving.send("a/1", "b/1", "c/1")
        async for message in _first(leaving.broker, 1):
            message.ack()
        await leaving.broker.shutdown()
        await two.send("b/1", "c/1")
        assert await length(redis) == 2
        two.listen()
        await until(lambda: sorted(two.read) == ["b/1", "c/1"])
        await until(lambda: _is_empty(redis))


async def test_what_was_handed_on_and_not_taken_up_is_given_back(redis_url: str) -> None:
    async with bench(redis_url) as leaving, bench(redis_url, "w2") as two:
        await leaving.send("a/1")
        async for _ in _first(leaving.broker, 1):
            pass
        await leaving.broker.shutdown()
        two.listen()
        await until(lambda: two.read == ["a/1"])


async def test_cancelling_never_hangs(one: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_broker, "BLOCK", 0.1)
    for n in range(100):
        listening = asyncio.create_task(anext(one.broker.listen()))
        for _ in range(n % 25):  # steps of the loop: some lie between two of sending
            await asyncio.sleep(0)
        listening.cancel()
        done, _ = await asyncio.wait([listening], timeout=2.0)
        assert done
        assert listening.cancelled()


# -- what Redis goes through -----------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("keep", [True, False])
async def test_listening_survives_a_restart(own: RedisServer, keep: bool) -> None:
    async with bench(own.url()) as one:
        one.listen()
        await one.send("a/1")
        await until(lambda: one.read == ["a/1"])
        own.kill()
        await asyncio.sleep(0.3)
        own.start(keep=keep)
        await one.send("b/1")
        await until(lambda: one.read == ["a/1", "b/1"])


async def test_what_waited_in_redis_outlives_a_restart(own: RedisServer) -> None:
    async with bench(own.url()) as one:
        await one.send("a/1", "b/1")
        own.kill()
        own.start()
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
        await until(lambda: _is_empty(redis))
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
        await until(lambda: _is_empty(redis))


async def test_sending_says_that_redis_is_away(own: RedisServer) -> None:
    async with bench(own.url()) as one:
        own.kill()
        with pytest.raises(exceptions.ConnectionError):
            await one.send("a/1")


# -- the process -----------------------------------------------------------------------------------

APP = """
import asyncio
from agentflow import AgentFlow, Policy

app = AgentFlow(plugins=[])

@app.task("slow.work", policy=Policy(repeatable=True))
async def work(call, input):
    print("begun", flush=True)
    await asyncio.sleep(30)
"""


@contextmanager
def worker_process(folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "slow_app.py").write_text(APP)
    told = clean(
        AGENTFLOW_REDIS_URL=url,
        AGENTFLOW_APP="slow_app:app",
        AGENTFLOW_DATA_DIR=str(folder / "data"),
        AGENTFLOW_GRACE="0.3",
        PYTHONPATH=str(folder),
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "worker"], env=told, cwd=folder, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def ended_in(process: subprocess.Popen[bytes]) -> float:
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.wait(20)
    return time.monotonic() - began


def test_an_idle_worker_ends_when_it_is_asked_to(tmp_path: Path, redis_url: str) -> None:
    with worker_process(tmp_path, redis_url) as process:
        said(tmp_path, "is a worker")
        time.sleep(0.5)  # it has begun to listen
        assert ended_in(process) < 5.0
        assert process.returncode == 0


async def test_a_worker_with_a_call_ends_after_its_grace(
    tmp_path: Path, redis_url: str, redis: Link
) -> None:
    """Though there is no writer to hear its last words."""
    with worker_process(tmp_path, redis_url) as process:
        said(tmp_path, "is a worker")
        stream = calls("slow")
        async with aclosing_broker(redis_url, stream) as broker:
            message = Message(
                JobId("job_" + "a" * 32), 1, Token("t"), "slow.work", {}, utcnow() + HOUR
            )
            packed = broker.packed("slow.work", "a/1", orjson.loads(orjson.dumps(message)))
            await broker.send([(stream, packed)])
        await asyncio.to_thread(said, tmp_path, "begun")
        assert await asyncio.to_thread(ended_in, process) < 10.0
        assert process.returncode == 0


@asynccontextmanager
async def aclosing_broker(url: str, stream: str) -> AsyncIterator[StreamBroker]:
    broker = StreamBroker(url, [stream], "sender", lambda: 1)
    try:
        yield broker
    finally:
        await broker.shutdown()


def said(folder: Path, words: str) -> None:
    end = time.monotonic() + 20
    while words not in (text := (folder / "log").read_text()):
        assert time.monotonic() < end, text
        time.sleep(0.02)
