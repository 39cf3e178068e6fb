"""Handlers that do what they should not: nobody is harmed but themselves."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fakes import rows, running, until
from support.notes import Crowd, crowded, deliver, runs, shop, texts
from support.patience import PATIENCE
from support.shop.models import Note
from tortoise.exceptions import OperationalError

from agentflow import AgentFlow, JobSpec, testing
from agentflow.errors import UsageError


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
    (hangs_whatever_happens, "took longer than 0.6 seconds"),
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
    async with running(tmp_path, fake, app=app, handler_timeout=0.6, synchronous="NORMAL"):
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
