"""agentflow inside somebody's application: mounted, with their models, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import structlog
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from support.fakes import Fake, deliver, rows, running, tell, until
from support.patience import PATIENCE
from support.servers import free_port
from support.serving import http_server
from support.shop.ledger import Entry
from support.shop.models import Note
from tortoise import Tortoise
from tortoise.connection import get_connection
from tortoise.context import TortoiseContext, get_current_context

from agentflow import Accepted, AgentFlow, Provider, Result, Settings, Succeeded
from agentflow.errors import SettingsError, UsageError
from agentflow.store.sql import Sql
from agentflow.testing.stand_ins import Trusting
from agentflow.types import utcnow

OWN = {"models": ["support.shop.models"]}


def settings(data: Path, **options: Any) -> Settings:
    return Settings(data_dir=data, grace=0.1, synchronous="NORMAL", **options)


async def columns(table: str) -> list[str]:
    sql = Sql(get_connection("default"))
    query = f"SELECT name FROM pragma_table_info('{table}')"
    if sql.postgres:
        query = (
            "SELECT column_name AS name FROM information_schema.columns"
            f" WHERE table_name = '{table}' ORDER BY ordinal_position"
        )
    return [row["name"] for row in await sql.rows(query)]


# -- mounted -------------------------------------------------------------------------------------


def echo() -> tuple[Provider, list[str | None]]:
    """A provider that keeps the webhook addresses it was given."""
    provider, urls = Provider("echo", webhooks="per_request", scheme=Trusting()), []

    @provider.task("say")
    async def say(call: Any, input: Any) -> Accepted:
        urls.append(call.webhook_url)
        return Accepted(call.job_id)

    return provider, urls


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
async def test_the_api_and_the_webhooks_live_under_the_mount(
    framework: str, tmp_path: Path
) -> None:
    provider, webhook_urls = echo()
    port = free_port()
    app = AgentFlow(
        models=["support.shop.models"],
        providers=[provider],
        plugins=[],
        settings=settings(tmp_path, public_url=f"http://127.0.0.1:{port}/agentflow"),
    )
    told = []

    @app.on_webhook("echo")
    async def heard(event: Any, tx: Any) -> None:
        told.append(event.delivery.json)

    async def notes() -> list[str]:
        await Note.create(text="from a request")
        return [note.text for note in await Note.all()]

    if framework == "fastapi":
        api: Any = FastAPI(lifespan=app.lifespan)
        api.mount("/agentflow", app.asgi)
        api.get("/notes")(notes)
    else:

        async def shown(request: Any) -> JSONResponse:
            return JSONResponse(await notes())

        api = Starlette(
            routes=[Mount("/agentflow", app.asgi), Route("/notes", shown)], lifespan=app.lifespan
        )

    base = f"http://127.0.0.1:{port}"
    async with http_server(api, port), httpx.AsyncClient(base_url=base) as http:
        made = await http.post("/agentflow/v1/jobs", json={"task": "echo.say", "input": 1})
        assert made.status_code == 201
        urls = made.json()["urls"]
        assert urls["self"] == made.headers["location"]
        assert urls["self"].startswith("/agentflow/v1/jobs/job_")
        job = (await http.get(urls["self"])).json()
        await until(app, job["id"], "waiting")
        assert (await http.get(urls["events"])).status_code == 200
        (webhook_url,) = webhook_urls
        assert str(webhook_url).startswith(f"{base}/agentflow/webhooks/echo/")
        assert (await http.post(str(webhook_url), json={"n": 1})).status_code == 202
        await app.runtime.writer.settled()
        assert told == [{"n": 1}]
        assert (await http.get("/notes")).json() == ["from a request"]
        assert (await http.get("/agentflow/readyz")).status_code == 200
    assert app.asgi.state.agentflow is None


async def test_without_its_lifespan_the_api_says_what_is_missing(tmp_path: Path) -> None:
    app = AgentFlow(plugins=[], settings=settings(tmp_path))
    transport = httpx.ASGITransport(app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/v1/jobs")
        assert answer.status_code == 503
        assert "lifespan" in answer.json()["detail"]
        for use in (lambda: app.submit("a.b"), lambda: app.adopt("a.b", external_id="x")):
            with pytest.raises(UsageError, match="run its lifespan"):
                await use()
        with pytest.raises(UsageError, match="run its lifespan"):
            app.transaction()
        with pytest.raises(UsageError, match="run its lifespan"):
            app.job("job_x")
        async with app.lifespan():
            assert (await http.get("/v1/jobs")).status_code == 200
        assert (await http.get("/v1/jobs")).status_code == 503


async def test_the_lifespan_may_be_one_of_several(tmp_path: Path) -> None:
    app = AgentFlow(plugins=[], settings=settings(tmp_path))
    order = []

    @contextlib.asynccontextmanager
    async def lifespan(api: Any) -> AsyncIterator[dict[str, int]]:
        async with app.lifespan(api):
            order.append("in")
            yield {"state": 1}
            assert app.runtime.missing() == []
            order.append("out")

    port = free_port()
    async with http_server(FastAPI(lifespan=lifespan), port):
        assert order == ["in"]
    assert order == ["in", "out"]


# -- the user's models ---------------------------------------------------------------------------


async def test_models_without_migrations_get_their_missing_tables(tmp_path: Path) -> None:
    app = AgentFlow(models=["support.shop.models"], plugins=[], settings=settings(tmp_path))
    for count in (1, 2):
        async with app.lifespan():
            await Note.create(text=f"{count}")
            assert await Note.all().count() == count, "what was there stays"
            assert await columns("note") == ["id", "text", "job"]


async def test_models_with_migrations_are_migrated_beside_ours(tmp_path: Path) -> None:
    app = AgentFlow(
        models=["support.shop.models"],
        migrations="support.shop.migrations",
        plugins=[],
        settings=settings(tmp_path),
    )
    for count in (1, 2):
        async with app.lifespan():
            await Note.create(text=f"{count}", job="j")
            assert await Note.all().count() == count
            assert await columns("note") == ["id", "text", "job"]
            found = await rows("SELECT app, name FROM tortoise_migrations")
            applied = [(row["app"], row["name"]) for row in found]
            assert set(applied) >= {("agentflow", "0001_initial"), ("models", "0002_job")}
            assert len(set(applied)) == len(applied), "each once"


async def test_an_existing_tortoise_configuration_is_taken_over(tmp_path: Path) -> None:
    own = {
        "connections": {"main": "sqlite://elsewhere.db"},
        "apps": {"books": {"models": ["support.shop.ledger"], "default_connection": "main"}},
    }
    app = AgentFlow(tortoise=own, plugins=[], settings=settings(tmp_path))
    async with app.lifespan():
        async with app.transaction() as tx:
            await Entry.create(text="a", using_db=tx)
        assert await Entry.all().count() == 1
        assert await columns("entry") == ["id", "text"]


def test_a_configuration_cannot_take_our_place() -> None:
    with pytest.raises(UsageError, match="the label agentflow is taken"):
        AgentFlow(tortoise={"apps": {"agentflow": OWN}})
    with pytest.raises(UsageError, match="not both"):
        AgentFlow(tortoise={"apps": {"shop": OWN}}, models=["support.shop.models"])


async def test_models_are_found_by_tasks_that_know_nothing_of_the_start(tmp_path: Path) -> None:
    app = AgentFlow(models=["support.shop.models"], plugins=[], settings=settings(tmp_path))

    async def elsewhere() -> int:
        await Note.create(text="elsewhere")
        async with app.transaction() as tx:
            await Note.create(text="and in a transaction", using_db=tx)
        return await Note.all().count()

    async with app.lifespan():
        task = asyncio.create_task(elsewhere(), context=contextvars.Context())
        assert await task == 2


# -- started and stopped -------------------------------------------------------------------------


async def test_starting_twice_is_refused_and_stopping_twice_is_not(tmp_path: Path) -> None:
    app = AgentFlow(plugins=[], settings=settings(tmp_path))
    await app.stop()
    await app.start()
    with pytest.raises(UsageError, match="started already"):
        await app.start()
    assert (await app.runtime.intake.add_inbox(command())).new, "the first goes on"
    await asyncio.gather(app.stop(), app.stop())
    await app.stop()
    assert get_current_context() is None
    async with app.lifespan():
        assert app.runtime.missing() == []


def command() -> Any:
    from agentflow.store.inserts import InboxEntry

    return InboxEntry(id="cmd_1", kind="command", body=b"{}", received_at=utcnow())


async def test_a_second_app_in_the_process_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    one = AgentFlow(models=["support.shop.models"], plugins=[], settings=settings(tmp_path / "one"))
    two = AgentFlow(plugins=[], settings=settings(tmp_path / "two"))
    async with one.lifespan():
        with pytest.raises(SettingsError, match="Run one AgentFlow per process"):
            await two.start()
        with pytest.raises(UsageError, match="not started"):
            two.job("job_x")
        await Note.create(text="one goes on")
    async with two.lifespan():
        assert await rows("SELECT * FROM agentflow_jobs") == []


async def test_a_tortoise_of_the_applications_own_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    app = AgentFlow(models=["support.shop.models"], plugins=[], settings=settings(tmp_path))
    async with TortoiseContext() as context:
        await context.init(db_url="sqlite://:memory:", modules={"models": OWN["models"]})
        await context.generate_schemas()
        with pytest.raises(SettingsError, match=r"AgentFlow\(tortoise=\.\.\.\)"):
            await app.start()
        await Note.create(text="theirs goes on")
    async with app.lifespan():
        assert await Note.all().count() == 0
        assert Tortoise.apps is not None


async def test_a_directory_in_use_is_refused_and_can_be_had_later(tmp_path: Path) -> None:
    app = AgentFlow(plugins=[], settings=settings(tmp_path))
    from agentflow.store.database import DirectoryLock

    lock = DirectoryLock(tmp_path)
    lock.take(" of somebody else")
    with pytest.raises(SettingsError, match="of somebody else"):
        await app.start()
    lock.release()
    async with app.lifespan():
        pass


async def test_handlers_of_what_ends_during_the_stop_may_submit(tmp_path: Path) -> None:
    patient = settings(tmp_path).model_copy(update={"grace": PATIENCE})
    app = AgentFlow(plugins=[], settings=patient)
    began = asyncio.Event()

    @app.task("crm.slow")
    async def slow(call: Any, input: Any) -> str:
        began.set()
        await asyncio.sleep(0.2)
        return "done"

    @app.on("crm.slow", "succeeded")
    async def go_on(event: Any, tx: Any) -> None:
        await app.submit("crm.slow", {"next": True}, delay=3600, using_db=tx)

    async with app.lifespan():
        job = await app.submit("crm.slow")
        await began.wait()  # one that is granted only is handed back by a stop
    async with app.lifespan():
        assert (await app.job(job.id).status())["status"] == "succeeded"
        assert await rows("SELECT * FROM agentflow_handler_runs") == []
        assert len(await rows("SELECT * FROM agentflow_jobs")) == 2


async def test_handlers_that_can_never_be_told_are_named_at_the_start(tmp_path: Path) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    app.on("fake.work", "failed")(lambda event, tx: None)
    app.on("fake.wrok", "failed")(lambda event, tx: None)
    app.on("*", "failed")(lambda event, tx: None)
    app.on_webhook("fake")(lambda event, tx: None)
    app.on_webhook("fkae")(lambda event, tx: None)
    with structlog.testing.capture_logs() as logs:
        async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
            pass
    named = [entry["on"] for entry in logs if entry["event"] == "Handler for nothing"]
    assert named == ["fake.wrok", "webhooks of fkae"]


async def test_jobs_of_a_plugin_that_is_gone_stop_nobody(tmp_path: Path) -> None:
    fake = Fake()
    app, other = AgentFlow(providers=[fake.provider], plugins=[]), AgentFlow(plugins=[])

    async def work(call: Any, input: Any) -> int:
        return 1

    for each in (app, other):
        each.task("crm.work")(work)
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        await app.runtime.serving.stop(0)
        orphan = await app.submit("fake.work", {})
        job = await app.submit("crm.work")
    async with running(tmp_path, fake, app=other, synchronous="NORMAL"):
        assert (await other.job(job.id).result(timeout=PATIENCE)).output == 1
        assert (await other.job(orphan.id).status())["status"] == "queued"
        await deliver(other, orjson.dumps([{"id": "x", "event": "succeeded"}]), id="d1")
        assert other.runtime.missing() == []
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        await until(app, orphan.id, "waiting")
        await tell(app, orphan.id, Succeeded(Result(output=2), attempt=1))
        assert (await app.job(orphan.id)).output == 2
