"""The broker of Redis streams when workers end, asked to or not: what they had, others take."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from support.cli import PROGRAM, clean
from support.patience import until
from support.streams import NORMAL, Bench, bench, first, is_empty, length

from agentflow.transport import stream_broker
from agentflow.transport.conversation import Message
from agentflow.transport.redis_link import WORKERS, Link, calls
from agentflow.transport.stream_broker import StreamBroker
from agentflow.types import JobId, Token, utcnow

DATABASES = ()

HOUR = timedelta(hours=1)


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
    await until(lambda: is_empty(redis))


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
        await until(lambda: dead.read and is_empty(redis))
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
        async for message in first(leaving.broker, 1):
            message.ack()
        await leaving.broker.shutdown()
        await two.send("b/1", "c/1")
        assert await length(redis) == 2
        two.listen()
        await until(lambda: sorted(two.read) == ["b/1", "c/1"])
        await until(lambda: is_empty(redis))


async def test_what_was_handed_on_and_not_taken_up_is_given_back(redis_url: str) -> None:
    async with bench(redis_url) as leaving, bench(redis_url, "w2") as two:
        await leaving.send("a/1")
        async for _ in first(leaving.broker, 1):
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
