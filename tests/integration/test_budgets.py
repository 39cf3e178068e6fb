"""Budgets: what calls may cost is capped before they are made."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.fakes import Fake, reasons, rows, running, tell, until
from support.money import budget, done, findings, granted, ledger, priced, shown
from support.patience import PATIENCE

from agentflow import (
    Accepted,
    CallTimeout,
    Cost,
    Failed,
    Policy,
    ProviderError,
    RateLimited,
    Result,
    Succeeded,
)


async def test_what_does_not_fit_is_not_called_and_says_why(tmp_path: Path) -> None:
    fake = priced()
    fake.answers[0] = done(8)
    async with running(tmp_path, fake) as app:
        await budget(app, 2)
        views = []
        for _ in range(4):
            job = await app.submit("fake.work", {})
            views.append(await until(app, job.id, "succeeded", "failed"))
        assert [view["status"] for view in views] == ["succeeded"] * 2 + ["failed"] * 2
        assert len(fake.calls) == 2, "a third call may cost 1 where 0.4 is left"
        assert views[2]["error"]["kind"] == "quota_exceeded"
        assert views[2]["error"]["message"] == (
            "The budget of tenant default (2 USD in all) has no room: 1.6 USD is spent, and this"
            " call may cost up to 1."
        )
        assert ("over_budget", "applied", "over_budget") in await reasons(views[2]["id"])
        assert await shown() == {"spent": "1.6", "reserved": "0", "left": "0.4"}
        assert await findings() == []


async def test_calls_under_way_keep_their_room_and_the_next_waits(tmp_path: Path) -> None:
    fake = priced()
    async with running(tmp_path, fake) as app:
        await budget(app, 2)
        jobs = [await app.submit("fake.work", {}) for _ in range(3)]
        async with asyncio.timeout(PATIENCE):
            while len(fake.calls) < 2:
                await asyncio.sleep(0.01)
        await app.runtime.writer.settled()
        assert await shown() == {"spent": "0", "reserved": "2", "left": "0"}
        states = [(await job.status())["status"] for job in jobs]
        assert sorted(states) == ["queued", "waiting", "waiting"], "not failed: it may fit yet"
        for job, state in zip(jobs, states, strict=True):
            if state == "waiting":
                await tell(app, job.id, Succeeded(done(1), attempt=1))
        app.runtime.clock.advance(5)
        app.runtime.writer.ring()
        await until(app, jobs[states.index("queued")].id, "waiting")
        assert await shown() == {"spent": "0.2", "reserved": "1", "left": "0.8"}
        assert await findings() == []


async def test_an_unknown_cost_counts_as_what_was_set_aside(tmp_path: Path) -> None:
    fake = priced()
    fake.answers = {1: Result(), 2: Result(cost=Cost("0.1", "EUR")), 3: RateLimited()}
    async with running(tmp_path, fake) as app:
        await budget(app, 9)
        for n in (1, 2, 3):
            job = await app.submit("fake.work", {"n": n}, max_attempts=1)
            await until(app, job.id, "succeeded", "failed")
        assert await shown() == {"spent": "2", "reserved": "0", "left": "7"}, "429 costs nothing"


async def test_a_bound_of_the_price_table_is_set_aside_rather_than_per_call(tmp_path: Path) -> None:
    fake = priced()
    fake.provider.tasks["fake.work"].most(lambda input: {"seconds": 20 + input["n"]})
    async with running(tmp_path, fake) as app:
        await budget(app, 9)
        job = await app.submit("fake.work", {"n": 5})
        await until(app, job.id, "waiting")
        assert (await shown())["reserved"] == "2.5"
        await tell(app, job.id, Succeeded(done(100), attempt=1))
        assert await shown() == {"spent": "10", "reserved": "0", "left": "0"}, "counted in full"


async def test_what_is_handed_back_canceled_or_refused_keeps_no_room(tmp_path: Path) -> None:
    from agentflow.core.events import Abandoned

    async with running(tmp_path, priced()) as app:
        await app.runtime.serving.stop(0)
        await budget(app, 9)
        job = await app.submit("fake.work", {})
        await granted(app, job.id, 1)
        assert (await shown())["reserved"] == "1"
        await tell(app, job.id, Abandoned(called=False, attempt=1))
        assert await shown() == {"spent": "0", "reserved": "0", "left": "9"}
        await granted(app, job.id, 1)
        await tell(app, job.id, Accepted("x", attempt=1))
        await job.cancel()
        await tell(app, job.id, Succeeded(done(), attempt=1))
        await until(app, job.id, "succeeded")
        assert await shown() == {"spent": "0.3", "reserved": "0", "left": "8.7"}
        assert await findings() == []


async def test_a_late_success_is_not_counted_twice(tmp_path: Path) -> None:
    async with running(tmp_path, priced(Policy(on_unknown="retry", backoff=0.0))) as app:
        await app.runtime.serving.stop(0)
        await budget(app, 9)
        job = await app.submit("fake.work", {})
        await granted(app, job.id, 1)
        await tell(app, job.id, Accepted("x", attempt=1))
        await tell(app, job.id, Failed(ProviderError("?", retryable=True), attempt=1))
        assert (await shown())["spent"] == "1", "nobody knows what it cost"
        await granted(app, job.id, 2)
        await tell(app, job.id, Succeeded(done(), attempt=1, external_id="x"))
        await until(app, job.id, "succeeded")
        assert await shown() == {"spent": "2", "reserved": "0", "left": "7"}


@pytest.mark.parametrize("how", ["surely not", "accepted", "used", "repeatable"])
async def test_a_failed_call_is_free_only_if_it_surely_had_no_effect(
    tmp_path: Path, how: str
) -> None:
    async with running(tmp_path, priced(Policy(repeatable=how == "repeatable"))) as app:
        await app.runtime.serving.stop(0)
        await budget(app, 9)
        job = await app.submit("fake.work", {}, max_attempts=1)
        await granted(app, job.id, 1)
        if how == "accepted":
            await tell(app, job.id, Accepted("x", attempt=1))
        usage = {"seconds": 2.0} if how == "used" else None
        await tell(app, job.id, Failed(CallTimeout("late"), attempt=1, usage=usage))
        await until(app, job.id, "failed")
        cost = {"surely not": "0", "used": "0.2"}.get(how, "1")
        assert ((await shown())["spent"], len(await ledger())) == (cost, int(cost != "0"))


async def test_a_budget_of_a_tag_holds_for_that_tag_alone(tmp_path: Path) -> None:
    fake = priced()
    fake.answers[0] = done()
    async with running(tmp_path, fake) as app:
        await budget(app, 0, tag="film")
        ended = {}
        for name, tags, tenant in (
            ("film", ["night", "film"], "default"), ("night", ["night"], "default"),
            ("other", ["film"], "other"),
        ):  # fmt: skip
            job = await app.submit("fake.work", {}, tags=tags, tenant=tenant)
            async with asyncio.timeout(PATIENCE):
                while (view := await job.status())["finished_at"] is None:
                    await asyncio.sleep(0.01)
            ended[name] = view["status"]
        assert ended == {"film": "failed", "night": "succeeded", "other": "succeeded"}


async def test_a_new_day_has_a_budget_of_its_own(tmp_path: Path) -> None:
    fake = priced()
    fake.answers[0] = done(10)
    async with running(tmp_path, fake) as app:
        await budget(app, 1, period="day")

        async def ends() -> str:
            job = await app.submit("fake.work", {})
            return str((await until(app, job.id, "succeeded", "failed"))["status"])

        assert [await ends(), await ends()] == ["succeeded", "failed"]
        app.runtime.clock.advance(86_400)
        if (await rows("SELECT 1 AS one"))[0]["one"] and app.runtime.shared:
            return  # PostgreSQL's clock does not go by ours
        assert [await ends(), await ends()] == ["succeeded", "failed"]


async def test_a_call_counts_for_the_period_in_which_it_was_granted(tmp_path: Path) -> None:
    async with running(tmp_path, priced()) as app:
        if app.runtime.shared:
            return  # PostgreSQL's clock does not go by ours
        await budget(app, 1, period="day")
        old = await app.submit("fake.work", {}, deadline=3 * 86_400)
        await until(app, old.id, "waiting")
        app.runtime.clock.advance(86_400)
        new = await app.submit("fake.work", {}, deadline=3 * 86_400)
        await until(app, new.id, "waiting")
        await tell(app, old.id, Succeeded(done(5), attempt=1))
        assert await shown() == {"spent": "0", "reserved": "1", "left": "0"}
        await tell(app, new.id, Succeeded(done(5), attempt=1))
        assert await shown() == {"spent": "0.5", "reserved": "0", "left": "0.5"}
        assert await findings() == []


async def test_a_new_budget_begins_with_what_was_spent_before(tmp_path: Path) -> None:
    fake = priced()
    fake.answers = {0: done(), 1: Result()}
    async with running(tmp_path, fake) as app:
        for n in (0, 0, 1):
            await until(app, (await app.submit("fake.work", {"n": n})).id, "succeeded")
        await budget(app, 9, period="month")
        assert await shown() == {"spent": "1.6", "reserved": "0", "left": "7.4"}
        await budget(app, 5, period="month")
        assert await shown() == {"spent": "1.6", "reserved": "0", "left": "3.4"}


async def test_a_repeatable_call_that_has_a_price_waits_for_its_grant(tmp_path: Path) -> None:
    fake = priced(Policy(repeatable=True))
    async with running(tmp_path, fake) as app:
        await budget(app, 0)
        view = await until(app, (await app.submit("fake.work", {})).id, "failed")
        assert view["error"]["kind"] == "quota_exceeded"
        assert fake.calls == {}


async def test_what_no_budget_can_stop_is_not_lost_and_counts(tmp_path: Path) -> None:
    """A repeatable call without a price is made before it is granted."""
    fake = Fake(Policy(repeatable=True))
    fake.answers = {1: Result(output="paid", cost=Cost("0.7")), 2: Result(output="who knows")}
    async with running(tmp_path, fake) as app:
        await budget(app, 1)
        ended = []
        for n in (1, 2, 2):
            job = await app.submit("fake.work", {"n": n})
            ended.append(await until(app, job.id, "succeeded", "failed"))
        assert [view["result"]["output"] for view in ended] == ["paid", "who knows", "who knows"]
        assert await shown() == {"spent": "2.7", "reserved": "0", "left": "0"}
        assert [len(made) for made in fake.calls.values()] == [1, 1, 1]
        assert await findings() == []


@pytest.mark.parametrize("broken", ["reserved", "orphan"])
async def test_the_audit_finds_room_kept_for_nothing(tmp_path: Path, broken: str) -> None:
    async with running(tmp_path, priced()) as app:
        id = await budget(app, 9)
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        if broken == "reserved":
            await rows("UPDATE agentflow_budgets SET reserved = 5")
        else:
            await rows("UPDATE agentflow_reservations SET job_id = 'job_0'")
        found = [(finding.kind.value, finding.id) for finding in await findings()]
        assert found == [("budget", id if broken == "reserved" else "job_0")]
