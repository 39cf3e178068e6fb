"""What calls cost: booked once, priced in one place, capped before they are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fakes import Fake, deliver, reasons, rows, running, tell, until
from tortoise.connection import get_connection

from agentflow import (
    Accepted,
    AgentFlow,
    Cost,
    Failed,
    Policy,
    Price,
    ProviderError,
    RateLimited,
    Result,
    Succeeded,
)
from agentflow.audit.auditor import Audit
from agentflow.audit.finding import Finding
from agentflow.store.budgets import list_budgets
from agentflow.store.sql import Sql
from agentflow.store.usage import UsageFilter, usage_sums
from agentflow.types import new_id
from agentflow.web.jobs import command

PRICES = (Price(date(2026, 1, 1), {"seconds": "0.10"}),)
BILLED = {"output": 7, "usage": {"seconds": 3}}


def priced(policy: Policy | None = None) -> Fake:
    fake = Fake(policy)
    fake.provider.prices = PRICES
    return fake


def done(seconds: float = 3) -> Result:
    return Result(output=7, usage={"seconds": seconds})


async def ledger() -> list[dict[str, Any]]:
    return await rows('SELECT * FROM "agentflow_usage" ORDER BY "job_id", "attempt"')


async def findings() -> list[Finding]:
    @asynccontextmanager
    async def snapshots() -> AsyncIterator[Sql]:
        yield Sql(get_connection("default"))

    audit = Audit(snapshots, now=datetime.now(UTC))
    return [found async for page in audit.pages() for found in page if not found.warning]


async def budget(app: AgentFlow, cap: int, **more: Any) -> str:
    """In whole units; `per_call` is 1 of them."""
    step = 10**10
    said = {
        "id": new_id("bud"), "tenant": "default", "tag": "", "period": "total", "currency": "USD",
        "cap": int(cap * step), "per_call": step, **more,
    }  # fmt: skip
    _, status = await command(
        app.runtime.context, "default", {"command": "set_budget", "budget": said}
    )
    assert status == "applied"
    await app.runtime.writer.settled()
    return str(said["id"])


async def shown() -> dict[str, Any]:
    (only,) = await list_budgets(None, datetime.now(UTC))
    return {name: only[name] for name in ("spent", "reserved", "left")}


# The ledger


async def test_one_end_told_by_all_is_booked_and_priced_once(tmp_path: Path) -> None:
    async with running(tmp_path, priced()) as app:
        job = await app.submit("fake.work", {"model": "m"}, tags=["film", "night"])
        await until(app, job.id, "waiting")
        name = f"ext-{job.id}-1"
        webhook = orjson.dumps([{"id": name, "event": "succeeded", "fields": {"result": BILLED}}])
        told = [
            tell(app, job.id, Succeeded(done(), attempt=1, external_id=name)) for _ in range(50)
        ]
        sent = [deliver(app, webhook, id=f"d{n}") for n in range(50)]
        await asyncio.gather(*told, *sent)
        view = await until(app, job.id, "succeeded")
        assert view["cost"] == {
            "amount": "0.3", "currency": "USD", "source": "price_table:2026-01-01",
        }  # fmt: skip
        (line,) = await ledger()
        assert (line["amount"], line["currency"]) == (3_000_000_000, "USD")
        assert (line["tenant"], line["task"], line["model"]) == ("default", "fake.work", "m")
        tags = await rows('SELECT "tag" FROM "agentflow_usage_tags" ORDER BY "tag"')
        assert [row["tag"] for row in tags] == ["film", "night"]
        assert await findings() == []


async def test_the_stored_event_has_the_cost(tmp_path: Path) -> None:
    fake = priced()
    fake.answers[0] = done()
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {})
        await until(app, job.id, "succeeded")
        (entry,) = await rows("SELECT fields FROM agentflow_history WHERE event = 'succeeded'")
        fields = entry["fields"]
        said = orjson.loads(fields) if isinstance(fields, str) else fields
        assert said["result"]["cost"]["amount"] == "0.3"


async def test_what_nobody_knows_is_null_and_counted(tmp_path: Path) -> None:
    fake = priced()
    fake.answers = {1: Result(output=1), 2: Result(cost=Cost("0.25", "EUR")), 3: done(0)}
    async with running(tmp_path, fake) as app:
        views = [
            await until(app, (await app.submit("fake.work", {"n": n})).id, "succeeded")
            for n in (1, 2, 3)
        ]
        costs = [view["cost"] and view["cost"]["amount"] for view in views]
        assert costs == [None, "0.25", "0"]
        ((item,), more) = await usage_sums("default", [], UsageFilter())
        assert (item["calls"], item["unknown"], more) == (3, 1, False)
        assert item["costs"] == [
            {"amount": "0.25", "currency": "EUR"},
            {"amount": "0", "currency": "USD"},
        ]


async def test_a_failed_call_that_was_billed_is_booked_and_a_refused_one_is_not(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, priced(Policy(backoff=0.0))) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        await granted(app, job.id, 1)
        await tell(app, job.id, Failed(RateLimited(retry_after=0), attempt=1))
        await granted(app, job.id, 2)
        await tell(app, job.id, Accepted("x", attempt=2))
        bad = Failed(ProviderError("broken", retryable=True), attempt=2, usage={"seconds": 2})
        await tell(app, job.id, bad)
        await granted(app, job.id, 3)
        await tell(app, job.id, Succeeded(done(), attempt=3))
        await until(app, job.id, "succeeded")
        booked = [(line["attempt"], line["outcome"], line["amount"]) for line in await ledger()]
        assert booked == [(2, "failed", 2_000_000_000), (3, "succeeded", 3_000_000_000)]
        assert await findings() == []


async def granted(app: AgentFlow, job: str, attempt: int) -> Any:
    """Claim it, as soon as it is queued."""
    from agentflow.transport.conversation import Claim, Granted
    from agentflow.types import JobId

    async with asyncio.timeout(10):
        while True:
            claim = Claim(JobId(job), attempt, new_id("n"), "w1", "fake.work")
            answer = await app.runtime.conversation.claim(claim)
            if isinstance(answer, Granted):
                return answer
            app.runtime.clock.advance(1)
            await app.runtime.writer.settled()
            await asyncio.sleep(0.01)


async def test_a_late_success_takes_the_place_of_the_unknown(tmp_path: Path) -> None:
    async with running(tmp_path, priced(Policy(on_unknown="retry", backoff=0.0))) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        await granted(app, job.id, 1)
        await tell(app, job.id, Accepted("x", attempt=1))
        await tell(app, job.id, Failed(ProviderError("?", retryable=True), attempt=1))
        assert [line["amount"] for line in await ledger()] == [None]
        await granted(app, job.id, 2)
        await tell(app, job.id, Succeeded(done(), attempt=1, external_id="x"))
        await until(app, job.id, "succeeded")
        booked = [(line["attempt"], line["outcome"], line["amount"]) for line in await ledger()]
        assert booked == [(1, "succeeded", 3_000_000_000), (2, "superseded", None)]
        assert await findings() == []


async def test_the_ledger_outlives_its_jobs(tmp_path: Path) -> None:
    fake = priced()
    fake.answers[0] = done()
    async with running(tmp_path, fake, keep_jobs=1.0) as app:
        job = await app.submit("fake.work", {}, tags=["film"])
        await until(app, job.id, "succeeded")
        app.runtime.clock.advance(2 * 86_400)
        await app.runtime.pruner.prune()
        assert await rows("SELECT id FROM agentflow_jobs") == []
        ((item,), _) = await usage_sums("default", ["tag"], UsageFilter(tag="film"))
        assert item["costs"] == [{"amount": "0.3", "currency": "USD"}]
        assert await findings() == []


async def test_sums_are_by_task_tag_tenant_model_and_day(tmp_path: Path) -> None:
    fake = priced()
    fake.answers[0] = done()
    async with running(tmp_path, fake) as app:
        for tenant, tags in (("default", ["a", "b"]), ("default", ["b"]), ("other", ["b"])):
            job = await app.submit("fake.work", {"model": "m"}, tags=tags, tenant=tenant)
            async with asyncio.timeout(5):
                while (await job.status())["status"] != "succeeded":
                    await asyncio.sleep(0.01)

        async def by(*groups: str, tenant: str | None = "default", **wanted: Any) -> list[Any]:
            items, _ = await usage_sums(tenant, groups, UsageFilter(**wanted))
            return [
                (*item["group"].values(), item["calls"], item["costs"][0]["amount"])
                for item in items
            ]

        assert await by("task") == [("fake.work", 2, "0.6")]
        assert await by("tag") == [("a", 1, "0.3"), ("b", 2, "0.6")]
        assert await by("tenant", tenant=None) == [("default", 2, "0.6"), ("other", 1, "0.3")]
        assert await by("model", "tag", tag="a") == [("m", "a", 1, "0.3")]
        today = datetime.now(UTC).date().isoformat()
        assert await by("day") == [(today, 2, "0.6")]
        assert await by("month") == [(today[:7], 2, "0.6")]
        ((all_,), _) = await usage_sums(None, [], UsageFilter())
        assert all_["usage"] == {"seconds": 9.0}
        ahead = datetime(2100, 1, 1, tzinfo=UTC)
        assert await by("task", since=ahead) == []
        assert await by("task", until=ahead, tag="b") == [("fake.work", 2, "0.6")]


async def test_the_audit_finds_a_changed_line(tmp_path: Path) -> None:
    fake = priced()
    fake.answers[0] = done()
    async with running(tmp_path, fake) as app:
        for _ in range(2):
            await until(app, (await app.submit("fake.work", {})).id, "succeeded")
        first, second = await ledger()
        await rows(f"UPDATE agentflow_usage SET amount = 1 WHERE id = {first['id']}")
        await rows(f"DELETE FROM agentflow_usage WHERE id = {second['id']}")
        found = {(finding.kind.value, finding.id) for finding in await findings()}
        assert found == {("ledger", first["job_id"]), ("ledger", second["job_id"])}


# Budgets


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
        async with asyncio.timeout(5):
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
            async with asyncio.timeout(5):
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
