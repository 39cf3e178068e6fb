"""A delivery and the acceptance it speaks of, in two writers at once: neither sees the other's
transaction, and still they are matched when the later of the two is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fakes import Fake, rows, running, until
from support.patience import PATIENCE

from agentflow import Accepted, AgentFlow
from agentflow.core.events import Envelope, Source
from agentflow.runtime import spawn
from agentflow.store.inserts import InboxEntry
from agentflow.transport.conversation import Claim
from agentflow.transport.local import LocalConversation
from agentflow.types import JobId, new_id, utcnow
from agentflow.worker.serving import cancel
from agentflow.writer.turn import Turn
from agentflow.writer.writer import Writer

DATABASES = ("postgres",)
SECOND = "agentflow-second-writer"


@dataclass
class Pair:
    """Two writers on one database; the first is the application's own."""

    app: AgentFlow
    second: Writer
    conversations: tuple[LocalConversation, LocalConversation]

    async def accept(self, job: str, by: int) -> None:
        """The worker reports an external id to this writer, which confirms it."""
        event = Accepted("ext", attempt=1)
        envelope = Envelope(new_id("told"), Source.WORKER, utcnow(), JobId(job), event)
        await self.conversations[by].report(envelope)

    async def store(self, *external_ids: str) -> None:
        """A delivery is stored, and either writer may apply it."""
        facts = [{"id": id, "event": "succeeded", "fields": {}} for id in external_ids]
        entry = InboxEntry(
            id=new_id("dlv"),
            kind="webhook",
            body=orjson.dumps(facts),
            received_at=utcnow(),
            provider="fake",
        )
        await self.app.runtime.intake.add_inbox(entry)
        self.second.ring()  # the first is rung by the intake


@asynccontextmanager
async def pair(data: Path) -> AsyncIterator[Pair]:
    async with running(data, Fake(webhooks="account")) as app:
        await app.runtime.serving.stop(0)  # the tests are the workers
        runtime, conversation = app.runtime, LocalConversation()
        second = Writer(
            runtime.tools, conversation, runtime.broker, runtime.clock, runtime.told, shared=True
        )
        task = spawn(second.run(), SECOND)
        await second.begin(broker_is_empty=False)
        try:
            yield Pair(app, second, (runtime.conversation, conversation))
        finally:
            await cancel([task])


@dataclass
class Held:
    """The first turn that `wanted` is true of waits for `free` before it commits. `by` is the
    number of its writer."""

    wanted: Callable[[Turn], bool]
    by: int = -1
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    free: asyncio.Event = field(default_factory=asyncio.Event)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        take = Turn.take

        async def held(turn: Turn) -> Any:
            done = await take(turn)
            if self.wanted(turn) and not self.reached.is_set():
                task = asyncio.current_task()
                self.by = int(task is not None and task.get_name() == SECOND)
                self.reached.set()
                await self.free.wait()
            return done

        patch.setattr(Turn, "take", held)


async def running_job(both: Pair) -> str:
    job = await both.app.submit("fake.work", {})
    await both.conversations[0].claim(Claim(job.id, 1, "nonce", "worker"))
    return job.id


async def inbox_is(status: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await rows("SELECT status FROM agentflow_inbox")) != [{"status": status}]:
            await asyncio.sleep(0.005)


async def test_a_delivery_parked_beside_an_uncommitted_acceptance_is_matched_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(lambda turn: any(h.job.attempts[-1].external_id for h in turn.batch.held.values()))
    async with pair(tmp_path) as both:
        job = await running_job(both)
        held.install(monkeypatch)
        accepting = asyncio.create_task(both.accept(job, by=0))
        await held.reached.wait()
        await both.store("ext")
        await inbox_is("parked")
        held.free.set()
        await accepting
        await until(both.app, job, "succeeded", seconds=3)
        await inbox_is("applied")
        assert await rows("SELECT * FROM agentflow_parked") == []


async def test_an_acceptance_beside_an_uncommitted_parking_is_matched_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(lambda turn: any(letter.unmatched for letter in turn.letters))
    async with pair(tmp_path) as both:
        job = await running_job(both)
        held.install(monkeypatch)
        await both.store("ext")
        await held.reached.wait()
        await both.accept(job, by=1 - held.by)
        assert (await until(both.app, job, "waiting"))["external_id"] == "ext"
        held.free.set()
        await until(both.app, job, "succeeded", seconds=3)
        await inbox_is("applied")
        assert await rows("SELECT * FROM agentflow_parked") == []
