"""Plugins that do what they must not while they run: their own jobs suffer, no others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.fakes import deliver, rows, running, until
from support.patience import PATIENCE

from agentflow import (
    Accepted,
    AgentFlow,
    Artifact,
    Changed,
    Failed,
    Policy,
    Progressed,
    Provider,
    Result,
    Succeeded,
)
from agentflow.errors import RateLimited
from agentflow.worker import running as functions
from agentflow.worker import watching

DATABASES = ("sqlite",)

Loop: list[Any] = []
Loop.append(Loop)


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Base(BaseException):
    pass


RETURNED: dict[str, Any] = {
    "object": object(),
    "lambda": lambda: 1,
    "endless": Loop,
    "set": {1, 2},
    "bytes": b"x",
    "output": Result(output=object()),
    "usage": Result(usage={"tokens": "many"}),
    "artifacts": Result(artifacts=["https://x"]),  # type: ignore[list-item]
    "url": Result(artifacts=[Artifact(5)]),  # type: ignore[arg-type]
    "result": Succeeded(5),  # type: ignore[arg-type]
    "id": Accepted(5),  # type: ignore[arg-type]
    "no_id": Accepted(""),
    "long_id": Accepted("x" * 300),
    "error": Failed(5),  # type: ignore[arg-type]
}
RAISED: dict[str, BaseException] = {
    "exit": SystemExit(1),
    "base": Base("x"),
    "speechless": Speechless(),
    "odd_wait": RateLimited(retry_after="soon"),  # type: ignore[arg-type]
    "odd_message": RateLimited({"a": 1}),  # type: ignore[arg-type]
    "odd_detail": RateLimited(detail=5),  # type: ignore[arg-type]
}


class Wild:
    """`work` returns or raises what its input names."""

    def __init__(self) -> None:
        self.provider = Provider("fake", webhooks="per_request", scheme=Anyone())
        self.gate = threading.Event()
        self.translate: Any = lambda error: None
        quick = Policy(max_attempts=1, unknown_checks=1, timeout=1.0)
        self.provider.task("work", policy=quick)(self.work)
        self.provider.task("plain", policy=quick)(self.plain)
        self.provider.task("hold", policy=quick)(self.hold)
        self.provider.task("stay", policy=quick)(self.stay)
        self.provider.parse(lambda delivery: self.parsed(delivery))
        self.provider.translate(lambda error: self.translate(error))
        self.parsed: Any = lambda delivery: []

    async def work(self, call: Any, input: Any) -> Any:
        if input in RAISED:
            raise RAISED[input]
        return RETURNED.get(input, {"said": input})

    def plain(self, call: Any, input: Any) -> Any:
        self.gate.wait(30)

    async def hold(self, call: Any, input: Any) -> Any:
        time.sleep(input)
        return "done"

    async def stay(self, call: Any, input: Any) -> Any:
        while not self.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)


class Anyone:
    def verifier(self, settings: Any) -> Any:
        return self

    def check(self) -> None: ...


@pytest.fixture
async def wild(tmp_path: Path) -> AsyncIterator[tuple[Wild, AgentFlow]]:
    one = Wild()
    app = AgentFlow(providers=[one.provider], plugins=[])
    async with running(tmp_path, one, app=app) as app:  # type: ignore[arg-type]
        yield one, app
    one.gate.set()


async def end(app: AgentFlow, task: str, input: Any) -> Any:
    job = await app.submit(f"fake.{task}", input)
    return await until(app, job.id, "succeeded", "failed", seconds=20)


async def well(app: AgentFlow) -> bool:
    job = await end(app, "work", "hello")
    return bool(job["status"] == "succeeded")


@pytest.mark.parametrize("what", RETURNED)
async def test_garbage_that_a_task_returns_is_unstorable(
    wild: tuple[Wild, AgentFlow], what: str
) -> None:
    job = await end(wild[1], "work", what)
    assert (job["status"], job["error"]["kind"]) == ("failed", "unstorable"), job
    assert await well(wild[1])


@pytest.mark.parametrize("what", RAISED)
async def test_whatever_a_task_raises_is_a_failure_of_its_job(
    wild: tuple[Wild, AgentFlow], what: str
) -> None:
    job = await end(wild[1], "work", what)
    assert job["error"]["kind"] in ("outcome_unknown", "rate_limited"), job
    assert await well(wild[1])


@pytest.mark.parametrize("said", [5, "text", Speechless(), {"a": 1}])
async def test_garbage_that_translate_returns_translates_nothing(
    wild: tuple[Wild, AgentFlow], said: Any
) -> None:
    wild[0].translate = lambda error: said
    assert (await end(wild[1], "work", "speechless"))["error"]["kind"] == "outcome_unknown"
    assert await well(wild[1])


@pytest.mark.parametrize(
    "said",
    [5, None, ["x"], [Progressed()], [Succeeded(5)], [Changed(external_id=5)]],  # type: ignore[arg-type,list-item]
    ids=str,
)
async def test_garbage_that_parse_returns_is_kept_with_its_delivery(
    wild: tuple[Wild, AgentFlow], said: Any
) -> None:
    wild[0].parsed = lambda delivery: said
    await deliver(wild[1], b"{}", id="one")
    (row,) = await rows("SELECT status, error FROM agentflow_inbox WHERE kind = 'webhook'")
    assert row["status"] == "failed"
    assert row["error"]
    assert await well(wild[1])


async def test_plain_functions_that_hang_keep_nobody_waiting(wild: tuple[Wild, AgentFlow]) -> None:
    """More of them than a pool has threads: files, host names and other plain tasks go on."""
    jobs = [await wild[1].submit("fake.plain", n) for n in range(40)]
    await asyncio.sleep(0.3)
    await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)
    assert await well(wild[1])
    for job in jobs:
        view = await until(wild[1], job.id, "failed", seconds=20)
        assert view["error"]["kind"] == "outcome_unknown"


async def test_an_async_function_that_holds_the_loop_is_named(
    wild: tuple[Wild, AgentFlow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.3)
    assert (await end(wild[1], "hold", 1.2))["status"] == "succeeded"
    known = wild[1].runtime.catalogue
    async with asyncio.timeout(PATIENCE):
        while not known.misconduct:
            await asyncio.sleep(0.05)
    said = known.misconduct["fake.hold"]
    assert "held the event loop" in said
    assert "test_isolation.py" in said
    held = wild[1].runtime.metrics.registry.get_sample_value
    assert held("agentflow_loop_held_total", {"task": "fake.hold"}) == 1
    assert await well(wild[1])


async def test_an_async_function_that_swallows_its_cancellation_is_left_behind_and_named(
    wild: tuple[Wild, AgentFlow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "STUBBORN", 0.2)
    job = await end(wild[1], "stay", None)
    assert job["error"]["kind"] == "outcome_unknown"
    assert functions.left_behind() == 1
    said = wild[1].runtime.catalogue.misconduct["fake.stay"]
    assert said.startswith("went on though it was canceled, at ")
    assert "test_isolation.py" in said
    assert await well(wild[1])
    wild[0].gate.set()
    async with asyncio.timeout(5):
        while functions.left_behind():
            await asyncio.sleep(0.05)
