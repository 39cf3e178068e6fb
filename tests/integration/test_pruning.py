"""What is old goes, and nothing that is still needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.fakes import Fake, running, until
from tortoise.connection import get_connection

from agentflow import AgentFlow, Artifact, Result, Succeeded
from agentflow.store.sql import Sql
from agentflow.writer import pruning
from agentflow.writer.pruning import Pruner

DAY = 86_400.0
TABLES = ("jobs", "attempts", "history", "tags", "handler_runs", "inbox")


def succeeding(result: Result) -> Fake:
    fake = Fake()
    fake.answers[0] = Succeeded(result)
    return fake


async def counts() -> dict[str, int]:
    sql = Sql(get_connection("default"))
    return {
        table: (await sql.rows(f'SELECT COUNT(*) AS n FROM "agentflow_{table}"'))[0]["n"]
        for table in TABLES
    }


def pruner(app: AgentFlow, **ages: Any) -> Pruner:
    runtime = app.runtime
    given = {"jobs": 1.0, "bodies": 1.0, "deliveries": None, **ages}
    return Pruner(runtime.clock.now, runtime.artifacts.delete, **given)


async def finished(app: AgentFlow, count: int) -> list[str]:
    jobs = [await app.submit("fake.work", {}, tags=["a", "b"]) for _ in range(count)]
    for job in jobs:
        await until(app, job.id, "succeeded")
    return [job.id for job in jobs]


async def test_a_job_goes_with_all_that_is_its(tmp_path: Path) -> None:
    fake = succeeding(Result(output=1))
    async with running(tmp_path, fake) as app:
        await finished(app, 3)
        assert await pruner(app).prune() == 0, "too young"
        app.runtime.clock.advance(2 * DAY)
        assert await pruner(app).prune() == 3
        assert set((await counts()).values()) == {0}


async def test_an_open_job_stays_however_old(tmp_path: Path) -> None:
    fake = Fake()
    fake.gate.clear()
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {}, deadline=30 * DAY)
        await until(app, job.id, "running")
        app.runtime.clock.advance(2 * DAY)
        assert await pruner(app).prune() == 0
        assert (await counts())["jobs"] == 1
        fake.gate.set()


async def test_a_job_whose_handler_is_owed_stays(tmp_path: Path) -> None:
    fake = succeeding(Result(output=1))
    app = AgentFlow(providers=[fake.provider])

    @app.on("fake.work", "succeeded", after_commit=True)
    async def later(event: Any) -> None:
        raise ZeroDivisionError

    async with running(tmp_path, fake, app=app) as app:
        await finished(app, 1)
        app.runtime.clock.advance(2 * DAY)
        await pruner(app).prune()
        assert (await counts())["jobs"] == 1


async def test_the_files_of_a_job_go_with_it(tmp_path: Path) -> None:
    url = "data:text/plain;base64,aGVsbG8="
    fake = succeeding(Result(artifacts=[Artifact(url)]))
    async with running(tmp_path, fake) as app:
        await finished(app, 1)
        files = [p for p in (tmp_path / "artifacts").rglob("*") if p.is_file()]
        assert len(files) == 1
        app.runtime.clock.advance(2 * DAY)
        await pruner(app).prune()
        assert not files[0].exists()


async def test_the_body_of_a_delivery_goes_before_the_memory_of_its_id(tmp_path: Path) -> None:
    async with running(tmp_path, Fake()) as app:
        sql = Sql(get_connection("default"))
        now = app.runtime.clock.now()
        columns = (
            "id", "tenant", "kind", "provider", "dedup_key", "headers", "body", "status",
            "received_at", "applied_at",
        )  # fmt: skip
        rows = [
            [
                f"dlv_{i}",
                "default",
                "webhook",
                "acme",
                f"id:{i}",
                '{"a": "b"}',
                b"{}",
                status,
                now,
                now,
            ]
            for i, status in enumerate(["applied", "ignored", "failed", "parked"])
        ]
        await sql.insert("agentflow_inbox", columns, rows)
        app.runtime.clock.advance(2 * DAY)
        assert await pruner(app).prune() == 2
        left = await sql.rows('SELECT "id", "body" FROM "agentflow_inbox" ORDER BY "id"')
        assert [bytes(row["body"]) for row in left] == [b"", b"", b"{}", b"{}"]
        assert await pruner(app, deliveries=1.0).prune() == 3
        (kept,) = await sql.rows('SELECT "id" FROM "agentflow_inbox"')
        assert kept["id"] == "dlv_3", "parked ones have their own alarm"


async def test_a_batch_is_small_and_the_next_follows(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pruning, "BATCH", 2)
    fake = succeeding(Result(output=1))
    async with running(tmp_path, fake) as app:
        await finished(app, 5)
        app.runtime.clock.advance(2 * DAY)
        old = pruner(app)
        assert [await old.prune() for _ in range(4)] == [2, 2, 1, 0]
