"""Handlers in the writer's transaction: together with the job, apart from each other."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fakes import Fake, rows, running, tell, until
from support.patience import PATIENCE
from support.shop.models import Note
from tortoise.exceptions import OperationalError

from agentflow import (
    AgentFlow,
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
from agentflow.testing.application import AppUnderTest


def shop(**options: Any) -> AgentFlow:
    return AgentFlow(models=["support.shop.models"], plugins=[], **options)


async def texts() -> list[str]:
    return sorted(note.text for note in await Note.all())


async def runs() -> list[dict[str, Any]]:
    return await rows("SELECT * FROM agentflow_handler_runs ORDER BY id")


async def deliver(app: AgentFlow, t: AppUnderTest, entity: str = "note:1") -> Any:
    job = await app.submit("acme.draw", {}, entity=entity)
    await t.deliver(job, Succeeded(Result(output=entity)))
    return job


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


# -- what handlers do to others ------------------------------------------------------------------


class Crowd:
    """Jobs that succeed in one batch; `output` says which handler behaves how."""

    def __init__(self, app: AgentFlow, fake: Fake) -> None:
        self.app, self.fake = app, fake

    async def start(self, count: int) -> list[str]:
        jobs = [await self.app.submit("fake.work", {}) for _ in range(count)]
        for job in jobs:
            await until(self.app, job.id, "waiting")
        return [job.id for job in jobs]

    async def succeed(self, outputs: dict[str, str]) -> None:
        events = [(id, Succeeded(Result(output=o), attempt=1)) for id, o in outputs.items()]
        await asyncio.gather(*(tell(self.app, id, event) for id, event in events))


def crowded(behave: Callable[[Any, Any], Awaitable[Any]]) -> tuple[AgentFlow, Fake]:
    """An application whose handler saves a note and then behaves."""
    fake = Fake()
    app = shop(providers=[fake.provider])

    @app.on("fake.work", "succeeded")
    async def save(event: Any, tx: Any) -> Any:
        await Note.create(text=event.job.id, using_db=tx)
        return await behave(event, tx)

    return app, fake


async def test_a_failing_handler_stops_nobody_in_its_batch(tmp_path: Path) -> None:
    async def behave(event: Any, tx: Any) -> None:
        if event.result.output == "bad":
            raise ZeroDivisionError

    app, fake = crowded(behave)
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        crowd = Crowd(app, fake)
        ids = await crowd.start(6)
        turns = app.runtime.writer.turns
        await crowd.succeed({id: "bad" if i % 3 == 0 else "good" for i, id in enumerate(ids)})
        assert app.runtime.writer.turns == turns + 1, "one batch"
        assert await texts() == sorted(id for i, id in enumerate(ids) if i % 3)
        assert {r["job_id"] for r in await runs()} == {ids[0], ids[3]}
        for id in ids:
            await until(app, id, "succeeded")


async def test_a_slow_handler_is_parked_with_the_place_where_it_hung(tmp_path: Path) -> None:
    async def behave(event: Any, tx: Any) -> None:
        if event.result.output == "slow":
            await asyncio.sleep(60)  # it hangs here

    app, fake = crowded(behave)
    async with running(tmp_path, fake, app=app, handler_timeout=0.2, synchronous="NORMAL"):
        crowd = Crowd(app, fake)
        slow, good = await crowd.start(2)
        began = time.monotonic()
        await crowd.succeed({slow: "slow", good: "good"})
        assert time.monotonic() - began < PATIENCE
        assert await texts() == [good]
        (run,) = await runs()
        assert (run["status"], run["job_id"]) == ("parked", slow)
        assert "took longer than 0.2 seconds" in run["error"]
        assert "await asyncio.sleep(60)  # it hangs here" in run["error"]
        await until(app, slow, "succeeded")


async def test_many_hanging_handlers_hold_up_neither_submits_nor_other_jobs_for_long(
    tmp_path: Path,
) -> None:
    fake = Fake()
    app = shop(providers=[fake.provider])

    @app.on("fake.work", "succeeded")
    async def save(event: Any, tx: Any) -> None:
        if event.result.output == "good":
            await Note.create(text=event.job.id, using_db=tx)
        else:
            await asyncio.sleep(60)

    @app.on("fake.work", "failed")
    async def other(event: Any, tx: Any) -> None:
        await Note.create(text=event.job.id, using_db=tx)

    options: dict[str, Any] = {"handler_timeout": 0.2, "handler_budget": 0.5}
    async with running(tmp_path, fake, app=app, synchronous="NORMAL", **options):
        crowd = Crowd(app, fake)
        *hanging, late = await crowd.start(13)
        telling = asyncio.create_task(crowd.succeed(dict.fromkeys(hanging, "hang")))
        failing = asyncio.create_task(tell(app, late, Failed(ProviderError("no"), attempt=1)))
        await asyncio.sleep(0.05)
        stranger = await app.submit("fake.work", {})
        assert not telling.done(), "twelve hanging handlers would have taken 2.4 seconds"
        await failing
        assert await texts() == [late]
        assert not telling.done(), "a job with another handler does not stand in line"
        await until(app, stranger.id, "waiting")
        await telling
        assert len(await runs()) == 12


async def test_a_handler_is_not_blamed_for_the_time_of_others(tmp_path: Path) -> None:
    async def behave(event: Any, tx: Any) -> None:
        await asyncio.sleep(0.06)

    app, fake = crowded(behave)
    for n in range(3):

        async def another(event: Any, tx: Any, n: int = n) -> None:
            await asyncio.sleep(0.25)

        another.__qualname__ = f"another_{n}"
        app.on("fake.work", "succeeded")(another)

    options: dict[str, Any] = {"handler_timeout": 0.5, "handler_budget": 0.6}
    async with running(tmp_path, fake, app=app, synchronous="NORMAL", **options):
        crowd = Crowd(app, fake)
        ids = await crowd.start(2)
        await crowd.succeed(dict.fromkeys(ids, "fine"))
        assert await texts() == sorted(ids)
        assert await runs() == []


async def test_handlers_that_must_wait_for_the_next_batch_run_once(tmp_path: Path) -> None:
    calls: list[str] = []

    async def behave(event: Any, tx: Any) -> None:
        calls.append(event.job.id)
        if event.result.output == "slow":
            await asyncio.sleep(60)

    app, fake = crowded(behave)
    async with running(tmp_path, fake, app=app, handler_timeout=0.1, synchronous="NORMAL"):
        crowd = Crowd(app, fake)
        ids = await crowd.start(6)
        await crowd.succeed({id: "slow" if i < 3 else "good" for i, id in enumerate(ids)})
        assert sorted(calls) == sorted(ids)
        assert await texts() == sorted(ids[3:])
        for id in ids:
            await until(app, id, "succeeded")


# -- what handlers do to themselves --------------------------------------------------------------


async def raises_cancelled(event: Any, tx: Any) -> None:
    raise asyncio.CancelledError


async def cancels_its_task(event: Any, tx: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def exits(event: Any, tx: Any) -> None:
    sys.exit(3)


async def rolls_back(event: Any, tx: Any) -> None:
    await tx.rollback()


async def commits(event: Any, tx: Any) -> None:
    await tx.commit()


async def rolls_back_raw(event: Any, tx: Any) -> None:
    await tx.execute_query("ROLLBACK")


async def commits_raw(event: Any, tx: Any) -> None:
    await tx.execute_query("/* quietly */ COMMIT")


async def runs_a_script(event: Any, tx: Any) -> None:
    await tx.execute_script("COMMIT; BEGIN;")


async def breaks_the_whole_transaction(event: Any, tx: Any) -> None:
    await tx.execute_query("INSERT OR ROLLBACK INTO note (id, text) SELECT id, 'x' FROM note")


async def hangs_whatever_happens(event: Any, tx: Any) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 1:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            continue
    await Note.create(text="too late", using_db=tx)


async def fails_unspeakably(event: Any, tx: Any) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    raise Unspeakable


async def fails_unprintably(event: Any, tx: Any) -> None:
    raise ValueError("\ud800 and \0")


async def returns_a_number(event: Any, tx: Any) -> Any:
    return 5


async def returns_a_dict(event: Any, tx: Any) -> Any:
    return {"task": "fake.work"}


async def returns_a_task_name(event: Any, tx: Any) -> Any:
    return [JobSpec("fake.work"), "fake.work"]


async def wants_an_unknown_task(event: Any, tx: Any) -> Any:
    return [JobSpec("fake.work", {}), JobSpec("fake.play")]


async def wants_bad_input(event: Any, tx: Any) -> Any:
    return JobSpec("fake.work", {"n": "many"})


async def wants_what_is_no_json(event: Any, tx: Any) -> Any:
    return JobSpec("fake.work", {"n": object()})


async def submits_beside(event: Any, tx: Any) -> Any:
    await APP[0].submit("fake.work", {})


async def waits_for_its_own_job(event: Any, tx: Any) -> Any:
    await (await APP[0].submit("fake.work", {}, using_db=tx))


async def writes_beside(event: Any, tx: Any) -> Any:
    await Note.create(text="beside", using_db=tx.root)


async def swallows_a_failure(event: Any, tx: Any) -> None:
    with contextlib.suppress(OperationalError):
        await tx.execute_query("SELECT nothing FROM nowhere")


async def ends_its_session(event: Any, tx: Any) -> None:
    await tx.execute_query("SELECT pg_terminate_backend(pg_backend_pid())")


APP: list[AgentFlow] = []

ENDINGS = [
    (raises_cancelled, "was canceled by its own code"),
    (cancels_its_task, "was canceled by its own code"),
    (exits, "called sys.exit()"),
    (hangs_whatever_happens, "took longer than 0.3 seconds"),
    (fails_unspeakably, "Unspeakable"),
    (fails_unprintably, "ValueError"),
]
TRANSACTIONS = [
    (rolls_back, "begins and ends a transaction"),
    (commits, "begins and ends a transaction"),
    (rolls_back_raw, "begins and ends a transaction"),
    (commits_raw, "begins and ends a transaction"),
    (submits_beside, "using_db=tx"),
    (waits_for_its_own_job, "Await the job after"),
]
BREAKING = {
    "sqlite": [
        (runs_a_script, "a script commits the transaction"),
        (breaks_the_whole_transaction, "broke the writer's transaction"),
        (writes_beside, "leave `using_db` out"),
    ],
    "postgres": [
        (runs_a_script, "begins and ends a transaction"),
        (swallows_a_failure, "transaction is aborted"),
        (ends_its_session, "broke the writer's transaction"),
    ],
}
ANSWERS = [
    (returns_a_number, "returned int: return JobSpecs, or nothing"),
    (returns_a_dict, "returned dict: return JobSpecs, or nothing"),
    (returns_a_task_name, "returned str: return JobSpecs, or nothing"),
    (wants_an_unknown_task, "There is no task 'fake.play'"),
    (wants_bad_input, "input.n"),
    (wants_what_is_no_json, "JSON"),
]


@pytest.mark.parametrize(
    "behaviors",
    [ENDINGS, TRANSACTIONS, BREAKING, ANSWERS],
    ids=["endings", "transactions", "breaking", "answers"],
)
async def test_a_handler_harms_nobody_but_itself(
    behaviors: Any, tmp_path: Path, database_kind: str
) -> None:
    if behaviors is BREAKING:
        behaviors = BREAKING[database_kind]
    named = {behave.__name__: behave for behave, _ in behaviors}

    async def sometimes(event: Any, tx: Any) -> Any:
        behave = named.get(event.result.output)
        return await behave(event, tx) if behave else None

    app, fake = crowded(sometimes)
    APP[:] = [app]
    async with running(tmp_path, fake, app=app, handler_timeout=0.3, synchronous="NORMAL"):
        crowd = Crowd(app, fake)
        for name, said in [(behave.__name__, said) for behave, said in behaviors]:
            known = len(await texts())
            before, bad, after = await crowd.start(3)
            stored = len(await rows("SELECT id FROM agentflow_jobs"))
            await crowd.succeed({before: "good", bad: name, after: "good"})
            assert set(await texts()) >= {before, after}, name
            run = (await runs())[-1]
            assert (run["status"], run["job_id"]) == ("parked", bad), name
            assert said in run["error"], name
            assert await ask(app, {"run": run["id"]}) == "failed", "no better the second time"
            assert len(await texts()) == known + 2, name
            assert len(await rows("SELECT id FROM agentflow_jobs")) == stored, "it started nothing"
            for id in (before, bad, after):
                await until(app, id, "succeeded")
            assert app.runtime.missing() == [], name
        assert len(await runs()) == len(behaviors), "nobody else's was set aside"


async def ask(app: AgentFlow, command: dict[str, Any]) -> str:
    """What became of a command."""
    transport = httpx.ASGITransport(app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.post(f"/v1/handler-runs/{command['run']}/retry")
        async with asyncio.timeout(PATIENCE):
            while (status := await status_of(answer.json()["id"])) == "received":
                await asyncio.sleep(0.01)
        return status


async def status_of(id: str) -> str:
    (row,) = await rows(f"SELECT status FROM agentflow_inbox WHERE id = '{id}'")
    return str(row["status"])


async def test_a_handler_that_forgets_using_db_is_in_the_transaction_all_the_same() -> None:
    app = shop()

    @app.on("acme.draw", "succeeded")
    async def save(event: Any, tx: Any) -> None:
        await Note.create(text=event.job.entity)
        assert await Note.all().count() == 1
        if event.job.entity == "note:bad":
            raise ZeroDivisionError

    async with testing.app(app, handlers_may_fail=True) as t:
        await deliver(app, t, "note:bad")
        assert await texts() == []
        await deliver(app, t, "note:good")
        assert await texts() == ["note:good"]


async def test_a_task_left_behind_by_a_handler_cannot_write_in_the_transaction() -> None:
    app = shop()
    left: list[asyncio.Task[Any]] = []

    async def later() -> None:
        await asyncio.sleep(0.1)
        await Note.create(text="later")

    @app.on("acme.draw", "succeeded")
    async def save(event: Any, tx: Any) -> None:
        await Note.create(text="now")
        left.append(asyncio.create_task(later()))

    async with testing.app(app) as t:
        await deliver(app, t)
        with pytest.raises(UsageError, match="start a task that is to outlive"):
            await left[0]
        assert await texts() == ["now"]


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
