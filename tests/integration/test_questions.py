"""What a plugin is asked about work under way: `fetch`, `find`, `cancel`, with the job's input."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from support.fakes import Anything, running, until
from support.patience import PATIENCE

from agentflow import (
    Accepted,
    AgentFlow,
    Call,
    Canceled,
    OutcomeUnknown,
    Policy,
    Provider,
    Result,
    Succeeded,
)
from agentflow.errors import InvalidInput
from agentflow.worker import chores


class Order(BaseModel):
    model: str
    steps: int = 4


class Curious:
    """A provider that wants to be asked by more than an id. `asked` are the questions, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.provider = Provider("fake", webhooks="per_request", scheme=Anything())
        policy = Policy(poll_after_webhook=0.05)
        task = self.provider.task("work", input=Order, policy=policy)(self._work)
        task.fetch(self._fetch)
        task.find(self._find)
        task.cancel(self._cancel)

    async def _work(self, call: Call, input: Order) -> Any:
        if input.model == "lost":
            raise OutcomeUnknown()
        return Accepted(f"ext-{input.model}")

    async def _fetch(self, call: Call, external_id: str, input: Order) -> Any:
        self.asked.append(("fetch", external_id, input))
        return None if input.model == "slow" else Succeeded(Result(output=input.model))

    def _find(self, call: Call, token: str, since: Any, input: Order) -> str:
        self.asked.append(("find", input))
        return f"ext-{input.model}"

    async def _cancel(self, call: Call, external_id: str, *, input: Order) -> Canceled:
        self.asked.append(("cancel", external_id, input))
        return Canceled()


async def test_each_question_comes_with_the_input_as_the_model_reads_it(tmp_path: Path) -> None:
    curious = Curious()
    app = AgentFlow(providers=[curious.provider], plugins=[])
    async with running(tmp_path, curious, app=app, synchronous="NORMAL"):  # type: ignore[arg-type]
        lost = await app.submit("fake.work", {"model": "lost"})
        assert (await lost.result(timeout=PATIENCE)).output == "lost"
        assert curious.asked[:2] == [
            ("find", Order(model="lost")),
            ("fetch", "ext-lost", Order(model="lost")),
        ]
        slow = await app.submit("fake.work", {"model": "slow", "steps": 9})
        await until(app, slow.id, "waiting")
        await slow.cancel()
        await until(app, slow.id, "canceled")
        assert curious.asked[-1] == ("cancel", "ext-slow", Order(model="slow", steps=9))


async def test_what_is_asked_with_its_input_is_adopted_with_it(tmp_path: Path) -> None:
    curious = Curious()
    app = AgentFlow(providers=[curious.provider], plugins=[])
    async with running(tmp_path, curious, app=app, synchronous="NORMAL"):  # type: ignore[arg-type]
        for input in (None, {"steps": 1}):
            with pytest.raises(InvalidInput, match="input"):
                await app.adopt("fake.work", external_id="abc", input=input)
        job = await app.adopt("fake.work", external_id="abc", input={"model": "flux"})
        assert (await job.result(timeout=PATIENCE)).output == "flux"
        assert curious.asked == [("fetch", "abc", Order(model="flux"))]


async def test_an_input_is_sent_along_only_to_who_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    done = chores.do_chore

    async def noted(worker: Any, chore: Any) -> None:
        sent.append((chore.kind, chore.input))
        await done(worker, chore)

    monkeypatch.setattr("agentflow.worker.serving.do_chore", noted)
    provider = Provider("fake")
    work = provider.task("work", input=Order, policy=Policy(poll_after=0.05))(
        lambda call, input: Accepted("x")
    )
    work.fetch(lambda call, external_id: Succeeded(Result()))
    app = AgentFlow(providers=[provider], plugins=[])
    async with running(tmp_path, None, app=app, synchronous="NORMAL"):  # type: ignore[arg-type]
        job = await app.submit("fake.work", {"model": "flux"})
        await asyncio.wait_for(job.result(), PATIENCE)
    assert sent == [("fetch", None)]
