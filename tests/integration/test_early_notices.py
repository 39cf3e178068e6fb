"""A webhook that says only that something happened, and comes before the call has answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fakes import Fake, deliver, reasons, rows, running, until
from tortoise.connection import get_connection

from agentflow import Accepted, Canceled, OutcomeUnknown, Policy, Result, Succeeded
from agentflow.audit.reading import one_job
from agentflow.audit.record import check
from agentflow.store.sql import Sql
from agentflow.types import utcnow

NOTICE = orjson.dumps([{"event": "changed"}])

PATIENT = Policy(poll_after_webhook=3600.0)
"""A job that nobody is told of is not looked at before the test's time is up."""


async def told_of(app: Any, fake: Fake, n: int = 0, times: int = 1) -> Any:
    """A job whose call is under way, and whose provider has told of it."""
    fake.gate.clear()
    job = await app.submit("fake.work", {"n": n})
    await until(app, job.id, "running")
    (attempt,) = await rows(f"SELECT token FROM agentflow_attempts WHERE job_id = '{job.id}'")
    for each in range(times):
        await deliver(app, NOTICE, token=attempt["token"], id=f"{job.id}-{each}")
    return job


async def assert_sound(job: str) -> None:
    """What was decided is decided the same again, and folds to the row."""
    (record,) = await one_job(Sql(get_connection("default")), job)
    checked = check(record, utcnow())
    assert checked.findings == []
    assert checked.decided_again == len(record.history) - 1


async def test_it_is_remembered_and_fetched_with_the_answer(tmp_path: Path) -> None:
    fake = Fake(PATIENT)
    fake.news = Succeeded(Result(output="fetched"))
    async with running(tmp_path, fake, synchronous="NORMAL") as app:
        job = await told_of(app, fake, times=3)
        view = await job.status()
        assert (view["status"], view["phase"]) == ("running", "provider")
        await assert_sound(job.id)
        fake.gate.set()
        view = await until(app, job.id, "succeeded")
        assert (view["result"]["output"], fake.fetched) == ("fetched", [view["external_id"]])
        assert await reasons(job.id) == [
            ("submitted", "applied", "submitted"),
            ("started", "applied", "started"),
            ("changed", "applied", "noticed"),
            ("accepted", "applied", "accepted"),
            ("succeeded", "applied", "succeeded"),
        ]
        await assert_sound(job.id)
        found = await rows("SELECT status, reason, job_id FROM agentflow_inbox ORDER BY id")
        assert [tuple(row.values()) for row in found] == [
            ("applied", "noticed", job.id), *[("applied", "changed", job.id)] * 2,
        ]  # fmt: skip


async def test_nothing_new_at_the_provider_is_looked_at_when_it_would_have_been(
    tmp_path: Path,
) -> None:
    fake = Fake(PATIENT)
    fake.answers[1] = Accepted("x1")
    async with running(tmp_path, fake, synchronous="NORMAL") as app:
        job = await told_of(app, fake, 1)
        fake.gate.set()
        view = await until(app, job.id, "waiting")
        assert (view["phase"], view["external_id"]) == ("provider", "x1")
        (row,) = await rows(f"SELECT check_at, deadline FROM agentflow_jobs WHERE id = '{job.id}'")
        assert row["check_at"] >= row["deadline"]


@pytest.mark.parametrize("on_unknown", ["fail", "retry"])
async def test_work_that_was_told_of_is_found_and_not_made_again(
    tmp_path: Path, on_unknown: Any
) -> None:
    fake = Fake(Policy(poll_after_webhook=0.05, on_unknown=on_unknown, unknown_checks=1))
    fake.answers[1] = OutcomeUnknown()
    fake.news = Succeeded(Result(output="fetched"))
    fake.found = "x1"
    async with running(tmp_path, fake, synchronous="NORMAL") as app:
        job = await told_of(app, fake, 1)
        fake.gate.set()
        view = await until(app, job.id, "succeeded")
        assert (view["attempt"], view["external_id"]) == (1, "x1")
        assert fake.calls == {job.id: [1]}
        await assert_sound(job.id)


async def test_a_cancel_waits_for_the_answer_all_the_same(tmp_path: Path) -> None:
    fake = Fake(PATIENT)
    fake.news = Canceled()
    async with running(tmp_path, fake, synchronous="NORMAL") as app:
        job = await told_of(app, fake)
        await job.cancel()
        view = await until(app, job.id, "canceling")
        assert view["phase"] is None
        fake.gate.set()
        view = await until(app, job.id, "canceled")
        assert set(fake.canceled) == {view["external_id"]}
        await assert_sound(job.id)
