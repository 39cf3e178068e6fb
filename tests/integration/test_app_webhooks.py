"""For those who make the calls themselves: `@app.on_webhook` and `app.adopt`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from support.fakes import Fake, deliver, rows, running, tell, until
from support.notes import shop, texts
from support.patience import PATIENCE
from support.shop.models import Note

from agentflow import AgentFlow, Delivery, Fact, JobSpec, Provider, Result, Succeeded, testing
from agentflow.errors import Conflict, InvalidInput
from agentflow.testing.stand_ins import Trusting


async def inbox() -> list[dict[str, Any]]:
    return await rows("SELECT * FROM agentflow_inbox ORDER BY id")


# -- on_webhook ----------------------------------------------------------------------------------


async def test_a_handler_gets_the_deliveries_of_its_type_or_all_of_them() -> None:
    app = shop()
    told = []

    @app.on_webhook("acme", "invoice.paid")
    async def paid(event: Any, tx: Any) -> None:
        told.append(("paid", event.type, event.delivery.json["n"]))

    @app.on_webhook("acme")
    async def every(event: Any, tx: Any) -> None:
        told.append(("every", event.type, event.delivery.json["n"]))

    async with testing.app(app) as t:
        await t.webhook("acme", {"type": "invoice.paid", "n": 1})
        await t.webhook("acme", {"type": "invoice.late", "n": 2})
        await t.webhook("acme", {"n": 3})
        await t.webhook("other", {"type": "invoice.paid", "n": 4})
    assert told == [
        ("paid", "invoice.paid", 1),
        ("every", "invoice.paid", 1),
        ("every", "invoice.late", 2),
        ("every", None, 3),
    ]


async def test_a_delivery_about_no_job_is_stored_with_the_rows_it_led_to() -> None:
    app = shop()

    @app.on_webhook("acme")
    async def save(event: Any, tx: Any) -> Any:
        await Note.create(text=event.delivery.json["id"], using_db=tx)
        return JobSpec("acme.follow", {"id": event.delivery.json["id"]})

    async with testing.app(app) as t:
        await t.webhook("acme", {"id": "evt_1", "type": "paid"}, id="d1")
        await t.webhook("acme", {"id": "evt_1", "type": "paid"}, id="d1")
        assert await texts() == ["evt_1"], "once, however often it is sent"
        assert [(j["task"], j["status"]) for j in await t.jobs()] == [("acme.follow", "waiting")]
        (row,) = await inbox()
        assert (row["status"], row["reason"], row["type"]) == ("applied", "handled", "paid")


async def test_bytes_that_are_no_json_reach_the_handler_as_they_are() -> None:
    app = shop()
    told = []

    @app.on_webhook("acme")
    def take(event: Any, tx: Any) -> None:
        told.append((event.type, event.delivery.body))

    async with testing.app(app) as t:
        await t.webhook("acme", b"\xff not json")
    assert told == [(None, b"\xff not json")]


async def test_a_handler_is_told_even_if_nobody_can_read_the_facts() -> None:
    provider = Provider("acme", webhooks="account", scheme=Trusting())
    app = shop(providers=[provider])
    told = []

    @provider.parse
    def parse(delivery: Delivery) -> list[Fact]:
        raise ZeroDivisionError

    @app.on_webhook("acme")
    def take(event: Any, tx: Any) -> None:
        told.append(event.delivery.json)

    async with testing.app(app) as t:
        await t.webhook("acme", {"n": 1})
        assert told == [{"n": 1}]
        (row,) = await inbox()
        assert row["status"] == "failed"
        assert "ZeroDivisionError" in row["error"]


async def test_a_failing_webhook_handler_is_parked_and_retried_with_the_same_delivery() -> None:
    app = shop()
    repaired = False

    @app.on_webhook("acme", "paid")
    async def save(event: Any, tx: Any) -> None:
        await Note.create(text=event.delivery.json["id"], using_db=tx)
        if not repaired:
            raise ZeroDivisionError

    transport = httpx.ASGITransport(app.asgi)
    async with (
        testing.app(app, handlers_may_fail=True) as t,
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        await t.webhook("acme", {"id": "evt_1", "type": "paid"})
        assert await texts() == []
        (run,) = await rows("SELECT * FROM agentflow_handler_runs")
        (row,) = await inbox()
        assert (run["status"], run["kind"], run["inbox_id"]) == ("parked", "webhook", row["id"])
        repaired = True
        await http.post(f"/v1/handler-runs/{run['id']}/retry")
        await t.settle()
        assert await texts() == ["evt_1"]


async def test_a_webhook_handler_may_come_after_the_commit() -> None:
    app = shop()
    told = []

    @app.on_webhook("acme", after_commit=True)
    async def later(event: Any) -> Any:
        if not told:
            told.append("failed")
            raise ZeroDivisionError
        told.append(event.delivery.json["id"])
        return JobSpec("acme.follow")

    async with testing.app(app, handlers_may_fail=True) as t:
        await t.webhook("acme", {"id": "evt_1"})
        assert told == ["failed"]
        await t.advance(10)
        assert told == ["failed", "evt_1"]
        assert [j["task"] for j in await t.jobs()] == ["acme.follow"]


async def test_one_delivery_is_told_once_although_its_jobs_handlers_must_wait(
    tmp_path: Path,
) -> None:
    """The delivery stays unread until the job's handlers had their time."""
    fake = Fake()
    app = shop(providers=[fake.provider])
    told: list[str] = []

    @app.on("fake.work", "succeeded")
    async def slow(event: Any, tx: Any) -> None:
        told.append(f"job {event.job.entity}")
        await asyncio.sleep(60)

    @app.on_webhook("fake")
    async def take(event: Any, tx: Any) -> None:
        told.append(f"delivery {event.delivery.delivery_id}")

    options: dict[str, Any] = {"handler_timeout": 0.1, "synchronous": "NORMAL"}
    async with running(tmp_path, fake, app=app, **options):
        jobs = [await app.submit("fake.work", {}, entity=f"n:{n}") for n in range(3)]
        for job in jobs:
            await until(app, job.id, "waiting")
        bodies = [orjson.dumps([{"id": f"ext-{job.id}-1", "event": "succeeded"}]) for job in jobs]
        await asyncio.gather(*(deliver(app, body, id=f"{i}") for i, body in enumerate(bodies)))
        for job in jobs:
            await until(app, job.id, "succeeded")
        await app.runtime.writer.settled()
        assert sorted(told) == sorted(
            [f"job n:{n}" for n in range(3)] + [f"delivery {n}" for n in range(3)]
        )
        assert [row["status"] for row in await inbox()] == ["applied"] * 3


async def test_a_webhook_over_http_reaches_its_handler() -> None:
    app = shop()
    api = FastAPI()
    api.mount("/agentflow", app.asgi)

    @app.on_webhook("acme")
    async def save(event: Any, tx: Any) -> None:
        await Note.create(text=event.delivery.json["id"], using_db=tx)

    async with (
        testing.app(app) as t,
        httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as http,
    ):
        await t.webhook("acme", {"id": "so that acme is known"})
        for _ in range(2):
            answer = await http.post("/agentflow/webhooks/acme", json={"id": "evt_1"})
            assert answer.status_code == 202
        await t.settle()
        assert await texts() == ["evt_1", "so that acme is known"]


# -- adopt ---------------------------------------------------------------------------------------


async def test_an_adopted_call_ends_by_its_webhook(tmp_path: Path) -> None:
    fake = Fake(webhooks="account")
    app = shop(providers=[fake.provider])

    @app.on("fake.work", "succeeded")
    async def save(event: Any, tx: Any) -> None:
        await Note.create(text=f"{event.job.entity} {event.result.output}", using_db=tx)

    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        job = await app.adopt("fake.work", external_id="abc", entity="shot:7")
        view = await job.status()
        assert (view["status"], view["external_id"], view["reason"]) == (
            "waiting",
            "abc",
            "adopted",
        )
        fact = {"id": "abc", "event": "succeeded", "fields": {"result": {"output": 1}}}
        await deliver(app, orjson.dumps([fact]), id="d1")
        assert (await job.result(timeout=PATIENCE)).output == 1
        assert await texts() == ["shot:7 1"]
        assert fake.calls == {}, "the call was made elsewhere"


async def test_a_webhook_that_came_before_the_adoption_is_found_again(tmp_path: Path) -> None:
    fake = Fake(webhooks="account")
    app = shop(providers=[fake.provider])
    told = []

    @app.on_webhook("fake")
    def take(event: Any, tx: Any) -> None:
        told.append(event.delivery.delivery_id)

    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        fact = {"id": "abc", "event": "succeeded", "fields": {"result": {"output": 1}}}
        await deliver(app, orjson.dumps([fact]), id="d1")
        with pytest.raises(ZeroDivisionError):
            await adopt_and_fail(app)
        assert [row["status"] for row in await inbox()] == ["parked"]
        async with app.transaction() as tx:
            note = await Note.create(text="mine", using_db=tx)
            job = await app.adopt(
                "fake.work", external_id="abc", entity=f"note:{note.id}", using_db=tx
            )
        assert (await job.result(timeout=PATIENCE)).output == 1
        assert [row["status"] for row in await inbox()] == ["applied"]
        assert told == ["d1"]


async def adopt_and_fail(app: AgentFlow) -> None:
    async with app.transaction() as tx:
        await app.adopt("fake.work", external_id="abc", using_db=tx)
        raise ZeroDivisionError


async def test_a_parked_webhook_waits_with_its_job_for_the_handlers(tmp_path: Path) -> None:
    """Taken off the list only when the job it ends is written."""
    fake = Fake(webhooks="account")
    app = shop(providers=[fake.provider])
    calls = []

    @app.on("fake.work", "succeeded")
    async def slow(event: Any, tx: Any) -> None:
        calls.append(event.job.id)
        await asyncio.sleep(60)

    options: dict[str, Any] = {"handler_timeout": 0.1, "synchronous": "NORMAL"}
    async with running(tmp_path, fake, app=app, **options):
        first = await app.submit("fake.work", {})
        await until(app, first.id, "waiting")
        for n in range(2):
            fact = {"id": f"abc{n}", "event": "succeeded", "fields": {"result": {"output": n}}}
            await deliver(app, orjson.dumps([fact]), id=f"d{n}")
        async with app.transaction() as tx:
            adopted = [
                await app.adopt("fake.work", external_id=f"abc{n}", using_db=tx) for n in range(2)
            ]
        await tell(app, first.id, Succeeded(attempt=1))
        for n, job in enumerate(adopted):
            assert (await job.result(timeout=PATIENCE)).output == n
        assert sorted(calls) == sorted([first.id, *(job.id for job in adopted)])
        await app.runtime.writer.settled()
        assert [row["status"] for row in await inbox()] == ["applied"] * 2
        assert await rows("SELECT * FROM agentflow_parked") == []


async def test_a_replay_waits_with_its_job_for_the_handlers(tmp_path: Path) -> None:
    fake = Fake(webhooks="account")
    app = shop(providers=[fake.provider])
    told = []

    @app.on_webhook("fake")
    async def slow(event: Any, tx: Any) -> None:
        told.append(event.delivery.delivery_id)
        await asyncio.sleep(60)

    transport = httpx.ASGITransport(app.asgi)
    options: dict[str, Any] = {"handler_timeout": 0.1, "synchronous": "NORMAL"}
    async with (
        running(tmp_path, fake, app=app, **options),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        for n in range(3):
            await deliver(app, orjson.dumps([]), id=f"d{n}")
        told.clear()
        ids = [row["id"] for row in await inbox()]
        await asyncio.gather(*(http.post(f"/v1/deliveries/{id}/replay") for id in ids))
        await app.runtime.writer.settled()
        assert sorted(told) == ["d0", "d1", "d2"]


async def test_an_adopted_call_is_asked_after_without_webhooks(tmp_path: Path) -> None:
    fake = Fake()
    fake.news = Succeeded(Result(output="asked"))
    app = shop(providers=[fake.provider])
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        job = await app.adopt("fake.work", external_id="abc")
        assert (await job.result(timeout=PATIENCE)).output == "asked"
        assert fake.fetched == ["abc"]


async def test_what_cannot_be_adopted_is_refused(tmp_path: Path) -> None:
    fake = Fake()
    app = shop(providers=[fake.provider])
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        with pytest.raises(InvalidInput, match=r"There is no task 'fake\.play'"):
            await app.adopt("fake.play", external_id="abc")
        with pytest.raises(InvalidInput, match="external_id"):
            await app.adopt("fake.work", external_id="")
        with pytest.raises(InvalidInput, match="entity"):
            await app.adopt("fake.work", external_id="abc", entity="no entity")
        one = await app.adopt("fake.work", external_id="abc", idempotency_key="k")
        assert (await app.adopt("fake.work", external_id="abc", idempotency_key="k")).id == one.id
        with pytest.raises(Conflict, match=one.id):
            await app.adopt("fake.work", external_id="other", idempotency_key="k")
