"""The application's own tasks, and the handle of a job."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from support.fakes import Fake, rows, running, until
from support.patience import PATIENCE

from agentflow import (
    AgentFlow,
    Artifact,
    Call,
    Failed,
    InvalidInput,
    JobFailed,
    JobTimeout,
    Policy,
    ProviderError,
    RateLimited,
    Result,
    Succeeded,
    testing,
)
from agentflow.errors import NotFound, PluginError, UsageError


class Lookup(BaseModel):
    name: str
    times: int = 1


@dataclasses.dataclass
class Office:
    """An application whose task `crm.do` does what its input names."""

    app: AgentFlow
    log: list[Any] = dataclasses.field(default_factory=list)

    async def end(self, what: str, **options: Any) -> JobFailed:
        """Submit, and return how it failed."""
        job = await self.app.submit("crm.do", what, **options)
        with pytest.raises(JobFailed) as failed:
            await job.result(timeout=PATIENCE)
        return failed.value

    async def output(self, what: str, **options: Any) -> Any:
        job = await self.app.submit("crm.do", what, **options)
        return (await job.result(timeout=PATIENCE)).output


class Shown(BaseModel):
    name: str
    secret: SecretStr = SecretStr("s")


CYCLE: list[Any] = []
CYCLE.append(CYCLE)

GATE = threading.Event()
"""Lets `crm.block` go."""

RETURNS: dict[str, Any] = {
    "nothing": None,
    "plain": {"a": [1, 2.5, "x", None, True]},
    "model": Shown(name="n"),
    "object": object(),
    "set": {1, 2},
    "cycle": CYCLE,
    "huge number": 2**70,
    "dirty": {"a\0b": "c\0d\ud800e", "nan": float("nan"), "inf": [float("inf"), 1.5]},
    "large": "x" * 5000,
    "failed": Failed(ProviderError("as said")),
    "file": Result(artifacts=[Artifact("data:text/plain;base64,aGVsbG8=", name="a.txt")]),
}


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    app = AgentFlow(plugins=[])
    office = Office(app)

    @app.task("crm.do", policy=Policy(timeout=0.5, backoff=0.01))
    async def do(call: Call, input: str) -> Any:
        match input:
            case "hang":
                try:
                    await asyncio.sleep(60)
                finally:
                    office.log.append("stopped")
            case "raise":
                raise KeyError("what was missing")
            case "refuse":
                raise InvalidInput("not like this", detail={"errors": []})
            case "exit":
                sys.exit(1)
            case "retry":
                office.log.append(call.attempt)
                if call.attempt < 3:
                    raise RateLimited
        return RETURNS.get(input)

    @app.task("crm.block")
    def block(call: Call, input: Any) -> str:
        GATE.wait(PATIENCE)
        return threading.current_thread().name

    @app.task("crm.lookup", input=Lookup)
    async def lookup(call: Call, input: Lookup) -> Any:
        return [input.name] * input.times

    async with running(tmp_path, Fake(), app=app, max_result=4096, synchronous="NORMAL"):
        yield office


async def test_a_task_returns_any_json_or_a_result(office: Office) -> None:
    assert await office.output("nothing") is None
    assert await office.output("plain") == RETURNS["plain"]
    assert (await office.output("model"))["name"] == "n"
    job = await office.app.submit("crm.do", "file")
    (file,) = (await job).artifacts
    assert (file.status, file.name, file.size) == ("stored", "a.txt", 5)


async def test_the_input_is_the_tasks_model(office: Office) -> None:
    job = await office.app.submit("crm.lookup", {"name": "a", "times": 2})
    assert (await job).output == ["a", "a"]
    with pytest.raises(InvalidInput, match=r"input\.name: Field required"):
        await office.app.submit("crm.lookup", {})
    with pytest.raises(InvalidInput, match=r"Known tasks: crm\.block, crm\.do, crm\.lookup"):
        await office.app.submit("crm.look", {})


async def test_what_is_no_json_is_unstorable(office: Office) -> None:
    for what in ("object", "set", "cycle", "huge number"):
        failed = await office.end(what)
        assert (failed.status, failed.error.kind) == ("failed", "unstorable"), what
        assert "no JSON" in str(failed), what


async def test_what_databases_refuse_is_cleaned(office: Office) -> None:
    assert await office.output("dirty") == {
        "a\ufffdb": "c\ufffdd?e",
        "nan": None,
        "inf": [None, 1.5],
    }


async def test_a_large_result_becomes_a_file(office: Office) -> None:
    job = await office.app.submit("crm.do", "large")
    result = await job
    assert result.output is None
    (file,) = result.artifacts
    assert (file.name, file.size) == ("output.json", 5002)


async def test_an_exception_fails_the_job_with_its_words(office: Office) -> None:
    failed = await office.end("raise")
    assert failed.error.kind == "provider_error"
    assert "KeyError: 'what was missing'" in failed.error.message
    assert (await office.end("refuse")).error.kind == "invalid_input"
    assert (await office.end("failed")).error.message == "as said"


async def test_sys_exit_in_a_task_ends_the_job_and_not_the_process(office: Office) -> None:
    failed = await office.end("exit")
    assert "SystemExit" in failed.error.message
    assert await office.output("plain") == RETURNS["plain"]


async def test_a_task_that_takes_too_long_is_stopped(office: Office) -> None:
    failed = await office.end("hang")
    assert (failed.error.kind, failed.status) == ("timeout", "failed")
    assert "0.5 seconds" in failed.error.message
    assert office.log == ["stopped"] * 3, "a timeout is retried"


async def test_a_failure_that_can_pass_is_retried(office: Office) -> None:
    await office.output("retry")
    assert office.log == [1, 2, 3]


async def test_a_running_task_is_really_stopped_by_a_cancel(tmp_path: Path) -> None:
    app = AgentFlow(plugins=[])
    log = []

    @app.task("crm.hang")
    async def hang(call: Call, input: Any) -> None:
        log.append("started")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("stopped")
            raise

    async with running(tmp_path, Fake(), app=app, synchronous="NORMAL"):
        job = await app.submit("crm.hang")
        await until(app, job.id, "running")
        while not log:
            await asyncio.sleep(0.005)
        await job.cancel()
        with pytest.raises(JobFailed) as ended:
            await job.result(timeout=PATIENCE)
        assert (ended.value.status, ended.value.error) == ("canceled", None)
        assert str(ended.value) == f"Job {job.id} is canceled"
        assert log == ["started", "stopped"]


async def test_a_plain_function_runs_in_a_thread_and_blocks_nobody(office: Office) -> None:
    GATE.clear()
    slow = await office.app.submit("crm.block")
    await until(office.app, slow.id, "running")
    assert await office.output("plain") == RETURNS["plain"]
    assert (await slow.status())["status"] == "running"
    GATE.set()
    assert (await slow).output != threading.main_thread().name


async def test_a_tasks_progress_reaches_its_handlers(tmp_path: Path) -> None:
    app = AgentFlow()
    told = []

    @app.task("crm.count")
    async def count(call: Call, input: Any) -> str:
        call.progress(0.5, "half")
        await asyncio.sleep(0.02)
        return "done"

    @app.on("crm.count", "progress")
    def progress(event: Any, tx: Any) -> None:
        told.append((event.progress.fraction, event.progress.message))

    @app.on("crm.count", "succeeded")
    def end(event: Any, tx: Any) -> None:
        told.append(event.result.output)

    async with testing.app(app) as t:
        await app.submit("crm.count")
        await t.settle()
    assert told == [(0.5, "half"), "done"]


def test_a_task_is_called_group_and_name() -> None:
    app = AgentFlow()
    with pytest.raises(UsageError, match=r"as in crm\.lookup"):
        app.task("lookup")
    for name in ("Crm.lookup", "crm.", "crm.Look up"):
        with pytest.raises((PluginError, UsageError)):
            app.task(name)(lambda call, input: None)


# -- the handle of a job -------------------------------------------------------------------------


async def test_awaiting_a_job_gives_its_result_to_all_who_wait() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        job = await app.submit("acme.draw", {})
        waiting = [asyncio.create_task(job.result()) for _ in range(5)]
        waiting.append(asyncio.create_task(app.job(job.id).result()))
        await t.settle()
        assert not any(task.done() for task in waiting)
        given = Result(output={"a": 1}, text="t", usage={"seconds": 2.5})
        await t.deliver(job, Succeeded(given))
        assert await asyncio.gather(*waiting) == [given] * 6
        assert await job == given, "also later"


async def test_a_failed_job_raises_its_error_and_a_slow_one_a_timeout() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        job = await app.submit("acme.draw", {})
        with pytest.raises(JobTimeout, match="still waiting after"):
            await asyncio.gather(job.result(timeout=0.05), t.settle())
        await t.deliver(job, Failed(ProviderError("no ink", detail={"color": "red"})))
        with pytest.raises(JobFailed, match="failed: no ink") as failed:
            await job
        assert failed.value.error.kind == "provider_error"
        assert failed.value.error.detail == {"color": "red"}
        with pytest.raises(NotFound):
            await app.job("job_0").result()


async def test_a_cancel_ends_what_waits_at_the_provider() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        job = await app.submit("acme.draw", {})
        await t.settle()
        await job.cancel()
        await job.cancel()
        await t.settle()
        view = await job.status()
        assert (view["status"], view["reason"]) == ("canceled", "canceled")
        with pytest.raises(JobFailed, match="is canceled"):
            await job


async def test_a_job_is_awaited_across_a_restart(tmp_path: Path) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        fake.news = Succeeded(Result(output=1))
        app.runtime.clock.advance(61)
        app.runtime.writer.ring()
        assert (await app.job(job.id).result(timeout=PATIENCE)).output == 1
        assert len(await rows("SELECT id FROM agentflow_jobs")) == 1
