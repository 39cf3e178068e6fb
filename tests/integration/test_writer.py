"""The writer on a real database: once, in order, isolated, and silent only when all was heard."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fakes import Fake, deliver, reasons, rows, running, tell, until
from support.patience import PATIENCE

from agentflow import Accepted, Policy, Progressed, Result, Succeeded
from agentflow.core.events import Envelope, Source, Started
from agentflow.core.job import fold
from agentflow.store.rows import instant, loads
from agentflow.transport import local
from agentflow.transport.conversation import Claim, Denied, Granted
from agentflow.types import JobId, utcnow
from agentflow.writer import batch as batch_module
from agentflow.writer import turn as turn_module


async def test_the_same_report_is_applied_once(tmp_path: Path) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        for _ in range(3):
            await tell(app, job.id, Progressed(fraction=0.5, attempt=1), id="same")
        assert [e for e, _, _ in await reasons(job.id)].count("progressed") == 1


async def test_a_nonce_is_answered_the_same_again_and_another_is_denied(tmp_path: Path) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)  # this test is the worker
        job = await app.submit("fake.work", {})
        ask = app.runtime.conversation.claim
        first = await ask(Claim(job.id, 1, "mine", "w1"))
        assert isinstance(first, Granted)
        assert await ask(Claim(job.id, 1, "mine", "w1")) == first
        assert await ask(Claim(job.id, 1, "other", "w2")) == Denied("granted_to_another")
        assert isinstance(await ask(Claim(job.id, 2, "mine", "w1")), Denied)


async def test_a_claim_of_two_workers_at_once_is_granted_to_one(tmp_path: Path) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        answers = await asyncio.gather(
            *(app.runtime.conversation.claim(Claim(job.id, 1, f"n{i}", f"w{i}")) for i in range(9))
        )
        assert sum(isinstance(a, Granted) for a in answers) == 1


async def test_a_job_claimed_and_canceled_in_one_turn_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        fake.gate.clear()
        with monkeypatch.context() as waiting:
            waiting.setattr(app.runtime.writer, "_turn", lambda: asyncio.sleep(0.01))
            job = await app.submit("fake.work", {})
            cancel = asyncio.ensure_future(job.cancel())
            inbox = "SELECT id FROM agentflow_inbox"
            while app.runtime.conversation.empty or not await rows(inbox):
                await asyncio.sleep(0.01)
        app.runtime.writer.ring()
        await cancel
        await until(app, job.id, "canceled")
        assert fake.calls == {}
        assert ("started", "applied", "started") in await reasons(job.id)


async def test_a_poisonous_envelope_is_kept_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    decide = batch_module.decide

    def poisoned(job: Any, event: Any, now: Any, random: Any) -> Any:
        if getattr(event, "message", None) == "poison":
            raise ZeroDivisionError("a bug in the machine")
        return decide(job, event, now, random)

    monkeypatch.setattr(batch_module, "decide", poisoned)
    async with running(tmp_path, fake) as app:
        jobs = [await app.submit("fake.work", {}) for _ in range(5)]
        for job in jobs:
            await until(app, job.id, "waiting")
        bad = Progressed(message="poison", attempt=1)
        good = Progressed(message="fine", attempt=1)
        events = [bad if i == 2 else good for i in range(5)]
        await asyncio.gather(*(tell(app, j.id, e) for j, e in zip(jobs, events, strict=True)))
        told = [(await j.status())["progress"]["message"] for j in jobs]
        assert told == ["fine", "fine", None, "fine", "fine"]
        kept = await rows("SELECT * FROM agentflow_inbox WHERE kind = 'poison'")
        assert len(kept) == 1
        assert "ZeroDivisionError" in kept[0]["error"]
        assert kept[0]["job_id"] == jobs[2].id


async def test_a_delivery_before_its_attempt_is_known_is_parked_and_found(tmp_path: Path) -> None:
    fake = Fake(webhooks="account")
    fake.gate.clear()
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {})
        await until(app, job.id, "running")
        fact = {"id": f"ext-{job.id}-1", "event": "succeeded", "fields": {"result": {"output": 7}}}
        await deliver(app, orjson.dumps([fact]), id="early")
        (parked,) = await rows("SELECT status, wake_at FROM agentflow_inbox")
        assert parked["status"] == "parked"
        fake.gate.set()
        view = await until(app, job.id, "succeeded")
        assert view["result"]["output"] == 7
        (applied,) = await rows("SELECT status, job_id, wake_at FROM agentflow_inbox")
        assert (applied["status"], applied["job_id"], applied["wake_at"]) == (
            "applied",
            job.id,
            None,
        )
        assert await rows("SELECT * FROM agentflow_parked") == []


async def test_a_delivery_about_two_is_kept_until_both_are_known(tmp_path: Path) -> None:
    fake = Fake(webhooks="account")
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        jobs = {name: await app.submit("fake.work", {}) for name in ("first", "second")}
        for job in jobs.values():
            await app.runtime.conversation.claim(Claim(job.id, 1, "n", "w"))
        facts = [{"id": name, "event": "succeeded", "fields": {}} for name in jobs]
        await deliver(app, orjson.dumps(facts), id="both")
        for (name, job), left in zip(jobs.items(), (1, 0), strict=True):
            await tell(app, job.id, Accepted(name, attempt=1))
            await until(app, job.id, "succeeded")
            (row,) = await rows("SELECT status, wake_at FROM agentflow_inbox")
            assert (row["status"], row["wake_at"] is not None) == ("applied", bool(left))
            assert len(await rows("SELECT * FROM agentflow_parked")) == left


async def test_a_delivery_in_the_same_turn_as_its_acceptance_is_matched(tmp_path: Path) -> None:
    fake = Fake(webhooks="account")
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        await app.runtime.conversation.claim(Claim(job.id, 1, "n", "w"))
        fact = {"id": "ext", "event": "succeeded", "fields": {}}
        await asyncio.gather(
            tell(app, job.id, Accepted("ext", attempt=1)),
            deliver(app, orjson.dumps([fact]), id="same-turn"),
        )
        await until(app, job.id, "succeeded")


async def test_a_parked_delivery_expires(tmp_path: Path) -> None:
    fake = Fake(webhooks="account")
    async with running(tmp_path, fake, park_for=100.0) as app:
        await deliver(app, orjson.dumps([{"id": "nobody", "event": "succeeded"}]), id="x")
        app.runtime.clock.advance(101)
        await app.runtime.writer.settled()
        await asyncio.sleep(0.05)
        await app.runtime.writer.settled()
        (row,) = await rows("SELECT status, wake_at FROM agentflow_inbox")
        assert (row["status"], row["wake_at"]) == ("expired", None)
        assert await rows("SELECT * FROM agentflow_parked") == []


async def test_a_bad_element_of_a_delivery_leaves_the_others_and_is_shown(tmp_path: Path) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        await deliver(app, b"no json", id="bad")
        (row,) = await rows("SELECT status, error FROM agentflow_inbox")
        assert row["status"] == "failed"
        assert "JSONDecodeError" in row["error"]


async def test_a_silent_worker_is_judged_after_its_lease_and_a_beating_one_is_not(
    tmp_path: Path,
) -> None:
    fake = Fake(Policy(lease=15.0))
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        jobs = [await app.submit("fake.work", {}) for _ in range(2)]
        for job in jobs:
            await app.runtime.conversation.claim(Claim(job.id, 1, "n", "w"))
        app.runtime.clock.advance(10)
        app.runtime.conversation.beat("w", [(jobs[0].id, 1)])
        await app.runtime.writer.settled()
        app.runtime.clock.advance(6)
        app.runtime.writer.ring()
        view = await until(app, jobs[1].id, "waiting")
        assert (view["reason"], view["phase"]) == ("lease_lost", "submit_unknown")
        assert (await jobs[0].status())["status"] == "running"
        assert len(await reasons(jobs[0].id)) == 2, "beats are not history"


async def test_what_was_heard_is_read_before_silence_is_judged(tmp_path: Path) -> None:
    fake = Fake(Policy(lease=15.0))
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        await app.runtime.conversation.claim(Claim(job.id, 1, "n", "w"))
        app.runtime.clock.advance(60)
        await tell(app, job.id, Accepted("ext", attempt=1))
        await app.runtime.writer.settled()
        assert ("woke", "applied", "lease_lost") not in await reasons(job.id)
        assert (await job.status())["status"] == "waiting"


async def test_no_alarm_fires_while_the_process_catches_up_after_a_standstill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(Policy(lease=15.0))
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        await app.runtime.conversation.claim(Claim(job.id, 1, "n", "w"))
        await app.runtime.writer.settled()
        real = __import__("time").time
        monkeypatch.setattr("agentflow.writer.writer.time.time", lambda: real() + 60)
        app.runtime.clock.advance(60)
        app.runtime.writer.ring()
        await asyncio.sleep(0.1)
        assert (await job.status())["status"] == "running"


async def test_every_history_folds_to_its_row(tmp_path: Path) -> None:
    fake = Fake()
    fake.answers = {1: Result(output={"a": 1}), 2: ValueError("no"), 3: Accepted("e3")}
    async with running(tmp_path, fake) as app:
        jobs = [await app.submit("fake.work", {"n": n}) for n in (1, 2, 3, 0)]
        await until(app, jobs[0].id, "succeeded")
        await until(app, jobs[2].id, "waiting")
        await until(app, jobs[3].id, "waiting")
        await tell(app, jobs[3].id, Progressed(fraction=0.4, attempt=1))
        await tell(app, jobs[3].id, Succeeded(Result(text="x"), attempt=1))
        await jobs[2].cancel()
        for job in jobs:
            assert_folded(job.id, await whole(job.id))


async def whole(job: str) -> tuple[Any, Any, Any]:
    its = f"job_id = '{job}'"
    (row,) = await rows(f"SELECT * FROM agentflow_jobs WHERE id = '{job}'")
    attempts = await rows(f"SELECT * FROM agentflow_attempts WHERE {its}")
    patches = await rows(f"SELECT patch FROM agentflow_history WHERE {its} ORDER BY seq")
    return row, attempts, [loads(p["patch"]) for p in patches]


def assert_folded(job: str, found: tuple[Any, Any, Any]) -> None:
    row, attempts, patches = found
    folded = fold(patches)
    assert row["version"] == len(patches)
    for name in ("status", "reason", "phase", "ending", "attempt", "task", "tenant"):
        assert folded[name] == row[name], name
    for name in ("progress", "result", "error"):
        assert folded[name] == loads(row[name]), name
    for name in ("started_at", "finished_at", "deadline", "created_at"):
        assert instant(folded[name]) == instant(row[name]), name
    assert len(attempts) == len(folded["attempts"])
    for attempt in attempts:
        said = folded["attempts"][str(attempt["number"])]
        for name in ("token", "nonce", "worker", "external_id"):
            assert said[name] == attempt[name], name


async def test_a_backlog_waits_in_the_database_and_is_fetched_by_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MAX_UNCLAIMED", 2)
    fake = Fake()
    fake.gate.clear()
    async with running(tmp_path, fake, concurrency=1) as app:
        low = [await app.submit("fake.work", {}, priority=0) for _ in range(8)]
        high = await app.submit("fake.work", {}, priority=9)
        await asyncio.sleep(0.1)
        assert app.runtime.broker.room("fake") >= 0
        fake.gate.set()
        for job in [*low, high]:
            await until(app, job.id, "waiting")
        order = list(fake.calls)
        assert order.index(high.id) < order.index(low[-1].id)
        assert all(calls == [1] for calls in fake.calls.values())


async def test_open_jobs_go_on_after_a_restart(tmp_path: Path) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        queued = await app.submit("fake.work", {})
        delayed = await app.submit("fake.work", {}, delay=0.3)
    again = Fake()
    async with running(tmp_path, again) as app:
        await until(app, queued.id, "waiting")
        await until(app, delayed.id, "waiting")


async def test_an_outcome_in_the_spool_is_reported_before_its_attempt_is_given_up(
    tmp_path: Path,
) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        await app.runtime.conversation.claim(Claim(job.id, 1, "n", "dead"))
        event = Succeeded(Result(output="paid for"), attempt=1)
        left = Envelope("out:1:n", Source.WORKER, utcnow(), JobId(job.id), event)
        app.runtime.worker.reports.spool.add(left)
    async with running(tmp_path, Fake()) as app:
        view = await until(app, job.id, "succeeded")
        assert view["result"]["output"] == "paid for"
        async with asyncio.timeout(PATIENCE):  # it is told so after the commit
            while (tmp_path / "spool.jsonl").read_bytes():
                await asyncio.sleep(0.01)


async def test_news_for_an_unknown_job_is_confirmed_and_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path, Fake()) as app:
        await tell(app, "job_" + "0" * 32, Started("n", "w", attempt=1))
        answer = await app.runtime.conversation.claim(Claim(JobId("job_x"), 1, "n", "w"))
        assert answer == Denied("no_such_job")


async def test_an_inbox_row_that_breaks_the_batch_is_set_aside_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        match = turn_module.Turn._apply_letters

        def breaks(self: Any, letters: Any) -> None:
            if any(x.row["dedup_key"] == "id:bad" for x in letters):
                raise OSError("something nobody thought of")
            match(self, letters)

        monkeypatch.setattr(turn_module.Turn, "_apply_letters", breaks)
        fact = {"id": f"ext-{job.id}-1", "event": "succeeded", "fields": {}}
        await asyncio.gather(
            deliver(app, orjson.dumps([fact]), id="bad"),
            deliver(app, orjson.dumps([fact]), id="good"),
            tell(app, job.id, Progressed(fraction=0.1, attempt=1)),
        )
        await until(app, job.id, "succeeded")
        found = await rows("SELECT dedup_key, status, reason FROM agentflow_inbox ORDER BY 1")
        assert [(r["dedup_key"], r["status"]) for r in found] == [
            ("id:bad", "failed"),
            ("id:good", "applied"),
        ]


async def test_what_was_heard_is_not_lost_when_the_database_fails_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        commit, fails = app.runtime.writer._commit, [4]

        async def sometimes(*args: Any, **options: Any) -> Any:
            if fails[0]:
                fails[0] -= 1
                raise OSError("disk full")
            return await commit(*args, **options)

        monkeypatch.setattr(app.runtime.writer, "_commit", sometimes)
        monkeypatch.setattr(app.runtime.writer, "_alone", sometimes)
        await tell(app, job.id, Succeeded(Result(output=1), attempt=1))
        assert (await job.status())["status"] == "succeeded"
        assert fails == [0]


async def test_an_alarm_nobody_can_decide_on_waits_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    decide = batch_module.decide
    async with running(tmp_path, fake) as app:
        bad = await app.submit("fake.work", {}, delay=1)
        good = await app.submit("fake.work", {}, delay=1)

        def poisoned(job: Any, event: Any, now: Any, random: Any) -> Any:
            if job.id == bad.id:
                raise ZeroDivisionError
            return decide(job, event, now, random)

        monkeypatch.setattr(batch_module, "decide", poisoned)
        app.runtime.clock.advance(2)
        app.runtime.writer.ring()
        await until(app, good.id, "waiting")
        assert (await bad.status())["status"] == "scheduled"
        monkeypatch.setattr(batch_module, "decide", decide)
        app.runtime.clock.advance(61)
        app.runtime.writer.ring()
        await until(app, bad.id, "waiting")


async def test_what_a_webhook_says_is_cleaned_like_what_a_worker_says(tmp_path: Path) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        said = {"result": {"output": {"t": "a\0b"}}}
        fact = {"id": f"ext-{job.id}-1", "event": "succeeded", "fields": said}
        await deliver(app, orjson.dumps([fact]), id="nul")
        assert (await job.status())["result"]["output"] == {"t": "a\ufffdb"}


async def test_a_pause_that_another_writer_has_ended_denies_nobody(tmp_path: Path) -> None:
    """That writer has rung for the job; after a denial nobody would ring soon again."""
    async with running(tmp_path, Fake()) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        writer = app.runtime.writer
        writer._paused, writer._pauses_at = {"fake"}, time.monotonic() + 60  # as it knew it last
        claim = Claim(job.id, 1, "mine", "w1", "fake.work")
        assert isinstance(await app.runtime.conversation.claim(claim), Granted)
