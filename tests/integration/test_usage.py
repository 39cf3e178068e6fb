"""What calls cost: booked once, priced in one place."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.fakes import deliver, rows, running, tell, until
from support.money import BILLED, PRICES, done, findings, granted, ledger, priced
from support.patience import PATIENCE
from tortoise.transactions import in_transaction

from agentflow import (
    Accepted,
    Cost,
    Failed,
    Policy,
    Price,
    ProviderError,
    RateLimited,
    Result,
    Succeeded,
)
from agentflow.store import usage
from agentflow.store.sql import Sql
from agentflow.store.usage import Ended, UsageFilter, record_usage, usage_sums


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


async def test_a_call_costs_what_it_did_on_the_day_it_was_granted(tmp_path: Path) -> None:
    fake, tomorrow = priced(), datetime.now(UTC).date() + timedelta(days=1)
    fake.provider.prices = [*PRICES, Price(tomorrow, {"seconds": "9"})]
    async with running(tmp_path, fake) as app:
        if app.runtime.shared:
            return  # PostgreSQL's clock does not go by ours
        job = await app.submit("fake.work", {}, deadline=3 * 86_400)
        await until(app, job.id, "waiting")
        app.runtime.clock.advance(86_400)
        await tell(app, job.id, Succeeded(done(), attempt=1))
        view = await until(app, job.id, "succeeded")
        assert view["cost"]["amount"] == "0.3"


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
            async with asyncio.timeout(PATIENCE):
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


DAY = datetime(2026, 11, 5, tzinfo=UTC)


def call(number: int, **said: Any) -> Ended:
    """One that ended, so many hours into the day."""
    usual = {
        "job_id": f"job_{number}", "attempt": 1, "tenant": "default", "task": "a.b", "model": None,
        "outcome": "succeeded", "usage": {}, "cost": None, "tags": (),
        "at": DAY + timedelta(hours=number),
    }  # fmt: skip
    return Ended(**{**usual, **said})


async def booked(*calls: Ended) -> None:
    async with in_transaction("default") as tx:
        await record_usage(Sql(tx), calls)


async def test_a_sum_is_of_what_its_filters_admit(tmp_path: Path) -> None:
    async with running(tmp_path, priced()):
        await booked(
            call(0, model="m", tags=["x"]), call(1, task="a.c", tags=["x", "y"]),
            call(2, model="m", tenant="other", tags=["x"]), call(3, model="n"),
        )  # fmt: skip

        async def count(tenant: str | None = "default", **wanted: Any) -> int:
            ((item,), _) = await usage_sums(tenant, [], UsageFilter(**wanted))
            return int(item["calls"])

        assert [await count(), await count(None), await count("nobody")] == [3, 4, 0]
        assert [await count(task="a.b"), await count(model="m"), await count(tag="x")] == [2, 1, 2]
        assert await count(tag="y", task="a.b") == 0
        one = DAY + timedelta(hours=1)
        assert [await count(since=one), await count(until=one)] == [2, 1], "from, and before"
        assert [await count(since=one, tag="x"), await count(until=one, tag="x")] == [1, 1]


async def test_the_sums_are_those_of_the_lines_however_they_are_grouped(tmp_path: Path) -> None:
    dice = random.Random(7)
    tags = (["x"], ["x", "y"], [])
    calls = [
        call(
            number,
            tenant=dice.choice(["default", "other"]), task=dice.choice(["a.b", "a.c"]),
            model=dice.choice([None, "m", "n"]), tags=dice.choice(tags),
            usage=dice.choice([{}, {"t": number}, {"t": 1, "s": 0.5}]),
            cost=dice.choice(
                [None, Cost(f"{dice.random():.10f}"), Cost("900000000"), Cost("0.1", "EUR")]
            ),
        )
        for number in range(200)
    ]  # fmt: skip

    def of(each: Ended, group: str, tag: str | None) -> str | None:
        at = each.at.date().isoformat()
        other: dict[str, str | None] = {"tag": tag, "day": at, "month": at[:7]}
        return other[group] if group in other else getattr(each, group)

    def expected(groups: Sequence[str]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for each in calls:
            for tag in (each.tags or [None]) if "tag" in groups else [None]:
                key = tuple(of(each, group, tag) for group in groups)
                sums = found.setdefault(key, Counter())
                sums["calls"] += 1
                sums.update({f"used {unit}": n for unit, n in each.usage.items()})
                if each.cost is None:
                    sums["unknown"] += 1
                else:
                    sums[each.cost.currency] += Decimal(each.cost.amount)
        return found

    async with running(tmp_path, priced()):
        await booked(*calls)
        for groups in ([], ["task"], ["model", "day"], ["tag", "tenant"], ["month", "tag", "task"]):
            items, more = await usage_sums(None, groups, UsageFilter())
            said: dict[Any, Any] = {}
            for item in items:
                sums = {"calls": item["calls"], "unknown": item["unknown"]}
                sums |= {cost["currency"]: Decimal(cost["amount"]) for cost in item["costs"]}
                sums |= {f"used {unit}": n for unit, n in item["usage"].items()}
                said[tuple(item["group"].values())] = {n: v for n, v in sums.items() if v}
            assert said == {
                k: {n: v for n, v in s.items() if v} for k, s in expected(groups).items()
            }
            assert not more


async def test_no_group_is_shown_without_all_that_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MOST_COUNTS", 25)
    async with running(tmp_path, priced()):
        used = {f"u{n}": 1.0 for n in range(10)}
        await booked(*(call(n, model=f"m{n}", usage=used) for n in range(5)))
        items, more = await usage_sums("default", ["model"], UsageFilter())
        assert [len(item["usage"]) for item in items] == [10, 10]
        assert more


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
