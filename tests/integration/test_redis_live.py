"""Live text over Redis: bounded there, and whatever is lost of it costs no call and no job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr
from support.patience import PATIENCE
from support.poet import Heard, Poet, hear, listening
from support.proxy import Proxy
from support.servers import RedisServer, free_port
from support.serving import http_server

from agentflow import AgentFlow, Settings
from agentflow.app import standalone
from agentflow.transport import redis_live
from agentflow.transport.bus import Bell
from agentflow.transport.live import Limits, Piece
from agentflow.transport.redis_link import Link, connect, live
from agentflow.transport.redis_live import RedisInlet, RedisOutlet
from agentflow.types import JobId

DATABASES = ("postgres",)

JOB = JobId("job_1")
LIMITS = Limits(32 * 1024, 96 * 1024, 60)
TEXT = (1, "text")


class Wire:
    """A worker's side and a web process's, each with its own connection."""

    def __init__(self, url: str, stack: AsyncExitStack, limits: Limits = LIMITS) -> None:
        self.url, self._stack = url, stack
        self.redis = self.link()
        self.outlet = RedisOutlet(self.link(), limits)
        self.inlet = RedisInlet(self.link(), "web", limits)
        for work in (self.outlet.run(), self.inlet.run()):
            stack.push_async_callback(stopped, asyncio.create_task(work))
        self.offsets: dict[tuple[JobId, int], int] = {}

    def link(self, url: str | None = None) -> Link:
        made = connect(url or self.url)
        self._stack.push_async_callback(made.aclose)
        return made

    def say(self, text: str, job: JobId = JOB, attempt: int = 1, *, end: bool = False) -> None:
        offset = self.offsets.get((job, attempt), 0)
        self.offsets[job, attempt] = offset + len(text)
        self.outlet.send(Piece(job, attempt, "run", "text", offset, text, end))

    async def hears(self, until: str, job: JobId = JOB) -> str:
        """The text in the window, once it ends so; `_` for holes."""
        async with asyncio.timeout(PATIENCE):
            while not (text := text_of(self.inlet, job)).endswith(until):
                await asyncio.sleep(0.005)
        return text


def text_of(inlet: RedisInlet, job: JobId = JOB) -> str:
    said = inlet.window.get(job)
    tape = said.tapes.get("text") if said else None
    whole = ""
    while tape is not None and len(whole) < tape.end:
        start, text = tape.read(len(whole), 10**9)
        whole += "_" * (start - len(whole)) + text
    return whole


async def stopped(task: asyncio.Task[Any]) -> None:
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)


@pytest_asyncio.fixture
async def wire(redis_url: str) -> AsyncIterator[Wire]:
    async with AsyncExitStack() as stack:
        yield Wire(redis_url, stack)


async def test_what_is_said_is_heard_soon_and_in_order(wire: Wire) -> None:
    bell, other = Bell(), JobId("another")
    with wire.inlet.follow(other, Bell()), wire.inlet.follow(JOB, bell):
        wire.say("b", other)
        await wire.hears("b", other)
    with wire.inlet.follow(other, Bell()):
        await asyncio.sleep(0.2)  # the reader waits for that one alone
        with wire.inlet.follow(JOB, bell):
            await asyncio.sleep(0.05)
            wire.say("a")
            began = time.monotonic()
            await wire.hears("a")
            assert time.monotonic() - began < redis_live.BLOCK / 2, "not by looking now and then"
            assert bell.is_set()
    with wire.inlet.follow(JOB, bell):
        for n in range(400):  # as many as fit, however late they are read
            wire.say(f"{n} ")
        assert await wire.hears("399 ") == "a" + "".join(f"{n} " for n in range(400))


async def test_who_follows_later_gets_what_was_said_before(wire: Wire) -> None:
    wire.say("before ")
    await wire.outlet.settle()
    with wire.inlet.follow(JOB, Bell()):
        wire.say("and after")
        assert await wire.hears("after") == "before and after"


async def test_many_jobs_are_followed_by_one_connection(wire: Wire) -> None:
    jobs = [JobId(f"job_{n}") for n in range(60)]
    async with AsyncExitStack() as stack:
        for job in jobs:
            stack.enter_context(wire.inlet.follow(job, Bell()))
            stack.enter_context(wire.inlet.follow(job, Bell()))
        for job in jobs:
            wire.say(f"I am {job}", job)
        for job in jobs:
            assert await wire.hears(job, job) == f"I am {job}"
        blocked = [
            c for c in await wire.redis.client_list() if c["cmd"] == "xread" and "b" in c["flags"]
        ]
        assert len(blocked) <= 1
    assert wire.inlet.window.size == 0, "who is gone takes it along"
    assert not wire.inlet._cursors


async def test_catching_up_brings_all_that_was_settled(wire: Wire) -> None:
    with wire.inlet.follow(JOB, Bell()):
        for n in range(300):
            wire.say(f"{n} ")
        await wire.outlet.settle()
        await wire.inlet.catch_up(JOB)
        assert text_of(wire.inlet).endswith("299 ")


async def test_a_flood_takes_no_more_of_redis_than_the_limits(wire: Wire) -> None:
    """50 MB of one job and of many, as fast as it goes."""
    before = (await wire.redis.info("memory"))["used_memory"]
    jobs = [JobId(f"job_{n}") for n in range(50)]
    with wire.inlet.follow(JOB, Bell()):
        for n in range(6000):
            wire.say("x" * 8192, JOB if n % 2 else jobs[n % 50])
            if n % 50 == 0:
                await wire.outlet.settle()
                assert wire.outlet.size <= LIMITS.total + redis_live.PACK * 8300
        wire.say("end")
        await wire.hears("end")
        assert wire.inlet.window.size <= LIMITS.total
    await wire.outlet.settle()
    sizes = [await wire.redis.memory_usage(live(j)) or 0 for j in {JOB, *jobs}]
    assert sum(sizes) < 3 * LIMITS.total
    assert await wire.redis.memory_usage(live(JOB)) < 2 * LIMITS.job
    grown = (await wire.redis.info("memory"))["used_memory"] - before
    assert grown < 2_000_000, f"Redis has grown by {grown} bytes"


async def test_a_new_attempt_leaves_nothing_of_the_one_before(wire: Wire) -> None:
    for _ in range(20):
        wire.say("old ")
    wire.say("new", attempt=2)
    await wire.outlet.settle()
    assert await wire.redis.xlen(live(JOB)) == 1
    with wire.inlet.follow(JOB, Bell()):
        assert await wire.hears("new") == "new"


async def test_text_expires_some_time_after_its_end(wire: Wire) -> None:
    wire.say("abc")
    await wire.outlet.settle()
    assert await wire.redis.pttl(live(JOB)) > 3_500_000
    wire.say("", end=True)
    await wire.outlet.settle()
    assert 50_000 < await wire.redis.pttl(live(JOB)) <= 60_000


async def test_what_expired_is_counted_no_more(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        wire = Wire(redis_url, stack, Limits(1 << 20, 1 << 24, 0.05))
        for n in range(200):
            wire.say("x" * 1000, JobId(f"job_{n}"))
            wire.say("", JobId(f"job_{n}"), end=True)
        await wire.outlet.settle()
        await asyncio.sleep(0.1)
        wire.say("x", JobId("a new one"))
        await wire.outlet.settle()
        assert wire.outlet.size < 1000
        assert len(wire.outlet._streams) == 1


async def test_a_flush_is_a_gap_for_who_comes_later_and_none_for_who_has_it(wire: Wire) -> None:
    with wire.inlet.follow(JOB, Bell()):
        wire.say("before ")
        await wire.hears("before ")
        await wire.redis.flushall()
        wire.say("after")
        assert await wire.hears("after") == "before after"
    with wire.inlet.follow(JOB, Bell()):
        assert await wire.hears("after") == "_______after"


async def test_while_redis_is_away_nobody_waits_and_memory_is_bounded(
    redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_live, "WAITING", 50_000)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy("127.0.0.1", redis_server.port))
        wire = Wire(f"redis://127.0.0.1:{proxy.port}/0", stack)
        with wire.inlet.follow(JOB, Bell()):
            wire.say("before ")
            await wire.hears("before ")
            proxy.cut()
            for n in range(10_000):
                wire.say(f"{n:09} ")  # a plain function: it cannot wait
            began = time.monotonic()
            await wire.outlet.settle()
            await wire.inlet.catch_up(JOB)
            assert time.monotonic() - began < 3 * redis_live.PATIENCE + 5, "for a moment at most"
            assert wire.outlet._length <= 50_000 + redis_live.PACK * 10
            proxy.heal()
            wire.say("after")
            text = await wire.hears("after")
    assert len(text) == 7 + 100_000 + 5
    assert text.startswith("before ")
    assert "_" in text


async def test_a_silent_redis_holds_no_call_up_for_long(
    redis_server: RedisServer, redis_url: str
) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy("127.0.0.1", redis_server.port))
        wire = Wire(f"redis://127.0.0.1:{proxy.port}/0", stack)
        wire.say("x")
        await wire.outlet.settle()
        proxy.cut("blackhole")
        wire.say("y")
        began = time.monotonic()
        await wire.outlet.settle()
        assert redis_live.PATIENCE / 2 < time.monotonic() - began < redis_live.PATIENCE + 5
        proxy.heal()


async def test_words_of_a_later_version_stop_nothing(wire: Wire) -> None:
    with wire.inlet.follow(JOB, Bell()):
        await wire.redis.xadd(live(JOB), {"new": "words"})
        wire.say("known")
        await wire.hears("known")


# Whole jobs, over Redis


class Site:
    def __init__(self, http: httpx.AsyncClient, poet: Poet) -> None:
        self.http, self.poet = http, poet

    async def begin(self, name: str) -> str:
        asked = {"task": "poet.recite", "input": {"name": name}}
        job: str = (await self.http.post("/v1/jobs", json=asked)).json()["id"]
        async with asyncio.timeout(PATIENCE):
            while (await self.http.get(f"/v1/jobs/{job}")).json()["status"] != "running":
                await asyncio.sleep(0.01)
        return job

    async def result(self, job: str) -> Any:
        return (await self.http.get(f"/v1/jobs/{job}?wait=30")).json()


@asynccontextmanager
async def site(folder: Path, database: str, redis: str) -> AsyncIterator[Site]:
    poet, port = Poet(), free_port()
    app = AgentFlow(providers=[poet.provider], plugins=[])
    app._settings = Settings(
        data_dir=folder, port=port, grace=0.2, database_url=SecretStr(database),
        redis_url=SecretStr(redis),
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    async with (
        http_server(standalone(app), port),
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        yield Site(http, poet)


async def test_a_flush_in_the_middle_is_a_gap_and_the_result_is_right(
    tmp_path: Path, database: str, redis_server: RedisServer, redis_url: str
) -> None:
    async with site(tmp_path, database, redis_url) as one:
        job = await one.begin("poem")
        early = Heard()
        async with asyncio.timeout(20), listening(one.http, job, early) as messages:
            one.poet.tell("poem", "the lost beginning ")
            async for _ in messages:
                if early.text[TEXT]:
                    break
            redis_server.flush()
            one.poet.tell("poem", "the rest")
            async for _ in messages:
                if early.text[TEXT].endswith("rest"):
                    break
        await asyncio.sleep(0.2)
        late = asyncio.create_task(hear(one.http, job))
        await asyncio.sleep(0.2)
        one.poet.tell("poem", None)
        heard = await late
        await hear(one.http, job, early)
        assert early.text[TEXT] == "the lost beginning the rest"
        assert early.gaps == []
        assert heard.text[TEXT] == "___________________the rest"
        assert [gap["missing"] for gap in heard.gaps] == [19]
        said = await one.result(job)
        assert (said["status"], said["result"]["text"]) == (
            "succeeded",
            "the lost beginning the rest",
        )


async def test_without_redis_the_text_is_gone_and_the_job_is_not(
    tmp_path: Path, database: str, own_redis: RedisServer
) -> None:
    async with site(tmp_path, database, own_redis.url()) as one:
        job = await one.begin("poem")
        heard = Heard()
        async with asyncio.timeout(20), listening(one.http, job, heard) as messages:
            one.poet.tell("poem", "a beginning, ")
            async for _ in messages:
                if heard.text[TEXT]:
                    break
        own_redis.kill()
        one.poet.tell("poem", "never heard, ", None)
        await asyncio.sleep(0.5)
        own_redis.start(keep=False)
        said = await one.result(job)
        assert said["result"]["text"] == "a beginning, never heard, "
        await asyncio.sleep(0.1)
        assert (await hear(one.http, job, heard)).order[-1] == "succeeded"
        text = heard.text[TEXT]
        assert text == said["result"]["text"] or heard.gaps, "whole, or it says that it is not"
