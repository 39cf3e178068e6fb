"""Handlers in the writer's transaction: together with the job, apart from each other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fakes import Fake, rows, running, tell, until
from support.notes import deliver, runs, shop, texts
from support.shop.models import Note

from agentflow import (
    Canceled,
    Failed,
    JobSpec,
    Progressed,
    ProviderError,
    Result,
    Succeeded,
    testing,
)
from agentflow.errors import UsageError


async def test_a_handlers_row_and_its_jobs_status_appear_together() -> None:
    app = shop()

    @app.on("acme.draw", "succeeded")
    async def save(event: Any, tx: Any) -> None:
        await Note.create(text=event.job.id, using_db=tx)
        await asyncio.sleep(0.05)  # for those who look

    async with testing.app(app) as t:
        job = await app.submit("acme.draw", {})
        await t.settle()
        delivering = asyncio.create_task(t.deliver(job, Succeeded()))
        seen = []
        while not seen or not delivering.done():
            (both,) = await rows(
                "SELECT (SELECT COUNT(*) FROM note) AS notes, status FROM agentflow_jobs"
            )
            seen.append((both["notes"], both["status"]))
            await asyncio.sleep(0.001)
        await delivering
        assert set(seen) <= {(0, "waiting"), (1, "succeeded")}
        assert seen.count((0, "waiting")) > 5, "somebody looked meanwhile"
        assert await texts() == [job.id]


async def test_an_event_tells_what_the_job_was_for() -> None:
    app = shop()
    told = []

    @app.on("acme.draw", "succeeded")
    def save(event: Any, tx: Any) -> None:
        told.append(event)

    async with testing.app(app) as t:
        job = await app.submit(
            "acme.draw", {"n": 1}, entity="shot:a:7", tags=["x"], metadata={"who": "me"}
        )
        await t.deliver(job, Succeeded(Result(output=[1], text="one")))
        (event,) = told
        assert (event.kind, event.job.id, event.job.task) == ("succeeded", job.id, "acme.draw")
        assert (event.job.entity_type, event.job.entity_id) == ("shot", "a:7")
        assert (event.job.input, event.job.tags, event.job.metadata) == (
            {"n": 1},
            ["x"],
            {"who": "me"},
        )
        assert (event.result.output, event.result.text, event.error) == ([1], "one", None)
        assert event.job.status == "succeeded"


async def test_each_end_has_its_handlers_and_a_star_means_every_task() -> None:
    app = shop()
    told: list[tuple[str, str, Any]] = []
    for kind in ("succeeded", "failed", "canceled", "expired"):

        def note(event: Any, tx: Any, kind: str = kind) -> None:
            told.append((kind, event.kind, event.error and event.error.kind))

        note.__qualname__ = kind
        app.on("*", kind)(note)

    async with testing.app(app) as t:
        one, two, three, four = [await app.submit(f"acme.t{n}", {}) for n in range(4)]
        await t.deliver(one, Succeeded())
        await t.deliver(two, Failed(ProviderError("no")))
        await t.deliver(three, Canceled())
        await t.advance(4000)
        assert (await four.status())["status"] == "expired"
    assert told == [
        ("succeeded", "succeeded", None),
        ("failed", "failed", "provider_error"),
        ("canceled", "canceled", None),
        ("expired", "expired", "timeout"),
    ]


async def test_progress_has_handlers_too_and_old_news_does_not_reach_them() -> None:
    app = shop()
    told = []

    @app.on("acme.draw", "progress")
    async def note(event: Any, tx: Any) -> None:
        told.append((event.kind, event.progress.fraction, event.progress.message))

    async with testing.app(app) as t:
        job = await app.submit("acme.draw", {})
        for fraction in (0.2, 0.2, 0.6, 0.4):
            await t.deliver(job, Progressed(fraction=fraction))
        await t.deliver(job, Progressed(message="nearly"))
        await t.deliver(job, Succeeded())
    assert told == [("progress", 0.2, None), ("progress", 0.6, None), ("progress", 0.6, "nearly")]


async def test_a_failing_handler_undoes_only_its_own_writes_and_is_kept() -> None:
    app = shop()

    @app.on("acme.draw", "succeeded")
    async def first(event: Any, tx: Any) -> None:
        await Note.create(text="first", using_db=tx)

    @app.on("acme.draw", "succeeded")
    async def broken(event: Any, tx: Any) -> Any:
        await Note.create(text="broken", using_db=tx)
        await app.submit("acme.draw", {"by": "broken"}, using_db=tx)
        raise ZeroDivisionError("this line is told")

    @app.on("acme.draw", "succeeded")
    async def last(event: Any, tx: Any) -> None:
        await Note.create(text="last", using_db=tx)

    async with testing.app(app, handlers_may_fail=True) as t:
        job = await deliver(app, t)
        assert (await job.status())["status"] == "succeeded"
        assert await texts() == ["first", "last"]
        assert len(await t.jobs()) == 1
        (run,) = await runs()
        assert (run["status"], run["tries"], run["job_id"]) == ("parked", 1, job.id)
        assert "broken@acme.draw:succeeded" in run["handler"]
        assert 'raise ZeroDivisionError("this line is told")' in run["error"]


async def test_a_parked_run_is_shown_and_retried_on_demand() -> None:
    app = shop()
    repaired = False

    @app.on("acme.draw", "succeeded")
    async def save(event: Any, tx: Any) -> Any:
        await Note.create(text=f"{event.kind} {event.result.output} {event.at}", using_db=tx)
        if not repaired:
            raise ZeroDivisionError
        return JobSpec("acme.next")

    transport = httpx.ASGITransport(app.asgi)
    async with (
        testing.app(app, handlers_may_fail=True) as t,
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        job = await deliver(app, t)
        finished = (await job.status())["finished_at"]
        (shown,) = (await http.get("/v1/handler-runs?status=parked")).json()["items"]
        assert "ZeroDivisionError" in shown["error"]
        assert shown["job_id"] == job.id

        retry = f"/v1/handler-runs/{shown['id']}/retry"
        assert (await http.post(retry)).json()["status"] == "failed"
        (run,) = await runs()
        assert (run["status"], run["tries"]) == ("parked", 2)
        assert await texts() == []

        repaired = True
        assert (await http.post(retry)).json()["status"] == "applied"
        await t.settle()
        (run,) = await runs()
        assert (run["status"], run["tries"], run["error"]) == ("done", 3, None)
        (text,) = await texts()
        assert text.startswith("succeeded note:1 ")
        assert text[-32:-6].replace(" ", "T") + "Z" == finished, "the event is the one there was"
        assert [j["task"] for j in await t.jobs()] == ["acme.draw", "acme.next"]

        assert (await http.post(retry)).status_code == 409, "once is enough"
        assert len(await texts()) == 1
        assert (await http.post("/v1/handler-runs/run_0/retry")).status_code == 404


async def test_a_retried_progress_handler_gets_the_progress_there_was() -> None:
    app = shop()
    told = []

    @app.on("acme.draw", "progress")
    async def note(event: Any, tx: Any) -> None:
        told.append((event.kind, event.progress.fraction))
        if len(told) == 1:
            raise ZeroDivisionError

    transport = httpx.ASGITransport(app.asgi)
    async with (
        testing.app(app, handlers_may_fail=True) as t,
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        job = await app.submit("acme.draw", {})
        await t.deliver(job, Progressed(fraction=0.25))
        await t.deliver(job, Progressed(fraction=0.75))
        (run,) = await runs()
        await http.post(f"/v1/handler-runs/{run['id']}/retry")
    assert told == [("progress", 0.25), ("progress", 0.75), ("progress", 0.25)]


# -- jobs that handlers start --------------------------------------------------------------------


async def test_returned_jobs_start_once_however_often_the_end_is_told(tmp_path: Path) -> None:
    fake = Fake()
    app = shop(providers=[fake.provider])

    @app.on("fake.work", "succeeded")
    async def go_on(event: Any, tx: Any) -> Any:
        if event.job.entity == "step:1":
            return [JobSpec("fake.work", {}, entity=f"step:{n}") for n in (2, 3)]
        return None

    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        job = await app.submit("fake.work", {}, entity="step:1")
        await until(app, job.id, "waiting")
        done = Succeeded(attempt=1)
        told = [tell(app, job.id, done, id="same") for _ in range(3)]
        await asyncio.gather(*told, tell(app, job.id, done), tell(app, job.id, done))
        await tell(app, job.id, done)
        found = await rows("SELECT id, entity FROM agentflow_jobs ORDER BY id")
        assert [row["entity"] for row in found] == ["step:1", "step:2", "step:3"]
        for row in found[1:]:
            await until(app, row["id"], "waiting")
        assert sorted(fake.calls.values()) == [[1], [1], [1]]


async def test_one_job_and_a_generator_of_jobs_are_answers_too() -> None:
    app = shop()

    @app.on("acme.one", "succeeded")
    def one(event: Any, tx: Any) -> Any:
        return JobSpec("acme.many")

    @app.on("acme.many", "succeeded")
    def many(event: Any, tx: Any) -> Any:
        yield JobSpec("acme.end", 1)
        yield JobSpec("acme.end", 2)

    async with testing.app(app) as t:
        await t.deliver(await app.submit("acme.one"), Succeeded())
        await t.deliver((await t.jobs())[1], Succeeded())
        assert [(j["task"], j["input"]) for j in await t.jobs()][2:] == [
            ("acme.end", 1),
            ("acme.end", 2),
        ]


async def test_a_returned_job_with_a_known_key_is_not_started_again() -> None:
    app = shop()

    @app.on("acme.draw", "succeeded")
    async def go_on(event: Any, tx: Any) -> Any:
        await Note.create(text=event.job.entity)
        input = {"by": event.job.entity} if event.job.entity == "note:3" else {}
        return [JobSpec("acme.next", input, idempotency_key="once")] * 2

    async with testing.app(app, handlers_may_fail=True) as t:
        for n in (1, 2, 3):
            await deliver(app, t, f"note:{n}")
        assert [j["task"] for j in await t.jobs()].count("acme.next") == 1
        assert await texts() == ["note:1", "note:2"]
        (run,) = await runs()
        assert "Conflict" in run["error"], "the same key for another input is an error"


async def test_submit_in_a_handler_takes_its_transaction() -> None:
    app = shop()

    @app.on("acme.draw", "succeeded")
    async def go_on(event: Any, tx: Any) -> None:
        job = await app.submit("acme.next", {}, using_db=tx)
        await Note.create(text=job.id, using_db=tx)

    async with testing.app(app) as t:
        await deliver(app, t)
        (id,) = await texts()
        assert (await app.job(id).status())["status"] == "waiting"


# -- registering ---------------------------------------------------------------------------------


def test_what_cannot_be_called_is_refused_when_it_is_registered() -> None:
    app = shop()

    with pytest.raises(UsageError, match="is none of canceled, expired, failed"):

        @app.on("acme.draw", "done")
        async def none(event: Any, tx: Any) -> None: ...

    with pytest.raises(UsageError, match=r"called as function\(event, tx\)"):

        @app.on("acme.draw", "succeeded")
        async def one(event: Any) -> None: ...

    with pytest.raises(UsageError, match=r"called as function\(event\)"):

        @app.on("acme.draw", "succeeded", after_commit=True)
        async def two(event: Any, tx: Any) -> None: ...

    async def three(event: Any, tx: Any) -> None: ...

    app.on("acme.draw", "succeeded")(three)
    app.on("acme.draw", "failed")(three)
    with pytest.raises(UsageError, match="registered twice"):
        app.on("acme.draw", "succeeded")(three)
