"""What two writers do to each other's work, and what keeps it whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fakes import Fake, deliver, rows, running
from support.patience import PATIENCE
from tortoise.connection import get_connection

from agentflow import Accepted, AgentFlow, JobSpec, Policy, Result, Succeeded
from agentflow.core.events import Envelope, Event, Source
from agentflow.runtime import Runtime, spawn
from agentflow.store.inserts import InboxEntry
from agentflow.transport.conversation import Claim
from agentflow.transport.local import LocalConversation, LocalHeard
from agentflow.types import JobId, new_id, utcnow
from agentflow.worker.serving import cancel
from agentflow.writer import writer as writing
from agentflow.writer.writer import Writer

DATABASES = ("postgres",)


@asynccontextmanager
async def pair(
    data: Path, app: AgentFlow, fake: Fake
) -> AsyncIterator[tuple[Runtime, LocalConversation, Writer]]:
    """An application whose jobs the test moves, and a second writer with a conversation of its
    own."""
    async with running(data, fake, app=app):
        runtime, spoken = app.runtime, LocalConversation()
        await runtime.serving.stop(0)
        second = Writer(
            runtime.tools, spoken, runtime.broker, runtime.clock, runtime.told, shared=True
        )
        task = spawn(second.run(), "second writer")
        await second.begin(broker_is_empty=False)
        try:
            yield runtime, spoken, second
        finally:
            await cancel([task])


def outcome(job: str, event: Event | None = None) -> Envelope:
    return Envelope(
        "out", Source.WORKER, utcnow(), JobId(job), event or Succeeded(Result(), attempt=1)
    )


async def started(app: AgentFlow, **options: Any) -> str:
    job = await app.submit("fake.work", {}, **options)
    await app.runtime.conversation.claim(Claim(job.id, 1, "n", "w"))
    return job.id


async def together(spoken: LocalConversation, envelopes: Sequence[Envelope]) -> None:
    """Said in one breath, so that one batch hears all of it."""
    loop = asyncio.get_running_loop()
    heard = [LocalHeard(envelope, loop.create_future()) for envelope in envelopes]
    spoken.give_back(heard)
    for each in heard:
        assert each.answer is not None
        await each.answer


async def test_two_handlers_that_start_one_keyed_job_both_succeed(tmp_path: Path) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    both, calls = asyncio.Barrier(2), 0

    @app.on("fake.work", "succeeded")
    async def join(event: Any, tx: Any) -> JobSpec:
        nonlocal calls
        calls += 1
        if calls <= 2:
            await both.wait()
        return JobSpec("fake.work", {}, idempotency_key="the-join")

    async with pair(tmp_path, app, fake) as (runtime, spoken, _):
        first, second = await started(app), await started(app)
        await asyncio.gather(
            runtime.conversation.report(outcome(first)), spoken.report(outcome(second))
        )
        assert await rows("SELECT error FROM agentflow_handler_runs") == []
        assert len(await rows("SELECT 1 FROM agentflow_jobs")) == 3


async def test_handlers_that_cross_on_the_applications_rows_all_take_effect(
    tmp_path: Path,
) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    both, calls = asyncio.Barrier(2), 0

    @app.on("fake.work", "succeeded")
    async def count(event: Any, tx: Any) -> None:
        nonlocal calls
        shot = int(event.job.entity_id)
        await tx.execute_query("UPDATE shots SET n = n + 1 WHERE id = $1", [shot])
        calls += 1
        if calls <= 2:
            await both.wait()

    async with pair(tmp_path, app, fake) as (runtime, spoken, _):
        await get_connection("default").execute_script(
            "CREATE TABLE shots (id int PRIMARY KEY, n int);INSERT INTO shots VALUES (1, 0), (2, 0)"
        )
        jobs = [await started(app, entity=f"shot:{n}") for n in (1, 2, 2, 1)]
        await asyncio.gather(
            together(runtime.conversation, [outcome(id) for id in jobs[:2]]),
            together(spoken, [outcome(id) for id in jobs[2:]]),
        )
        assert await rows("SELECT error FROM agentflow_handler_runs") == []
        assert [r["n"] for r in await rows("SELECT n FROM shots ORDER BY id")] == [2, 2]


async def test_a_handler_asked_for_twice_in_two_writers_runs_once(tmp_path: Path) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    ran = 0

    @app.on("fake.work", "succeeded")
    async def moody(event: Any, tx: Any) -> None:
        nonlocal ran
        ran += 1
        if ran == 1:
            raise ZeroDivisionError
        await asyncio.sleep(0.3)

    async with pair(tmp_path, app, fake) as (runtime, _, second):
        await runtime.conversation.report(outcome(await started(app)))
        (run,) = await rows("SELECT id FROM agentflow_handler_runs")
        said = orjson.dumps({"command": "retry_handler", "run": run["id"]})
        for _ in range(2):
            entry = InboxEntry(id=new_id("cmd"), kind="command", body=said, received_at=utcnow())
            await runtime.intake.add_inbox(entry)
            second.ring()
            await asyncio.sleep(0.05)
        while await rows("SELECT 1 FROM agentflow_inbox WHERE status = 'received'"):
            await asyncio.sleep(0.05)
        assert ran == 2


async def test_no_fact_of_a_delivery_is_lost_beside_one_that_is_matched_late(
    tmp_path: Path,
) -> None:
    fake = Fake(webhooks="account")
    app = AgentFlow(providers=[fake.provider], plugins=[])

    @app.on("fake.work", "succeeded")
    async def slow(event: Any, tx: Any) -> None:
        await asyncio.sleep(0.3)

    async with running(tmp_path, fake, app=app, handler_timeout=2.0, handler_budget=2.1) as app:
        await app.runtime.serving.stop(0)
        spoken = app.runtime.conversation
        other, first, second = [await started(app) for _ in range(3)]
        await spoken.report(outcome(first, Accepted("ext-a", attempt=1)))
        loop = asyncio.get_running_loop()
        learned = outcome(second, Accepted("ext-b", attempt=1))
        facts = [
            {"id": "ext-a", "event": "succeeded", "fields": {}},
            {"id": "ext-b", "event": "progressed", "fields": {"fraction": 0.5}},
        ]
        spoken._heard += [LocalHeard(e, loop.create_future()) for e in (outcome(other), learned)]
        await deliver(app, orjson.dumps(facts), id="d1")
        async with asyncio.timeout(PATIENCE):
            while (await rows(f"SELECT status FROM agentflow_jobs WHERE id = '{first}'"))[0][
                "status"
            ] != "succeeded":
                await asyncio.sleep(0.05)


async def test_what_was_said_while_a_transaction_would_not_begin_is_read_before_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(Policy(lease=3.0, repeatable=True, max_attempts=1))
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        runtime, stalled, real = app.runtime, asyncio.Event(), writing.in_transaction
        job = await started(app)

        @asynccontextmanager
        async def slow(name: str) -> AsyncIterator[Any]:
            if not stalled.is_set():
                stalled.set()
                await asyncio.sleep(4.0)  # longer than the lease
            async with real(name) as tx:
                yield tx

        monkeypatch.setattr(writing, "in_transaction", slow)
        runtime.writer._looked_at = 0
        runtime.writer.ring()
        await stalled.wait()
        for _ in range(3):
            await asyncio.sleep(1.0)
            runtime.conversation.beat("w", [(JobId(job), 1)])
        await asyncio.sleep(1.5)
        (row,) = await rows("SELECT status FROM agentflow_jobs")
        assert row["status"] == "running"
