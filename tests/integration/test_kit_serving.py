"""What the kit starts for each check: a copy of an empty database, a server that goes when told."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support.web import url_of

from agentflow.settings import Settings
from agentflow.store.database import Database, Models
from agentflow.testing import seeding
from agentflow.testing.serving import served

DATABASES = ("sqlite",)


def tables(file: Path) -> list[Any]:
    with closing(sqlite3.connect(file)) as stranger:
        found = stranger.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name")
        applied = stranger.execute("SELECT app, name FROM tortoise_migrations ORDER BY name")
        return [*found.fetchall(), *applied.fetchall()]


async def test_a_copied_database_is_one_that_was_migrated(tmp_path: Path) -> None:
    copied, migrated = tmp_path / "copied", tmp_path / "migrated"
    for folder in (copied, migrated):
        folder.mkdir()
    await seeding.seed(copied)
    database = Database(Settings(data_dir=migrated), Models())
    await seeding._open(database)
    await database.close()
    assert tables(copied / seeding.FILE) == tables(migrated / seeding.FILE)


async def test_each_copy_is_its_owner_s_alone(tmp_path: Path) -> None:
    await seeding.seed(tmp_path)
    with closing(sqlite3.connect(tmp_path / seeding.FILE)) as mine:
        mine.execute("DROP TABLE agentflow_jobs")
    await seeding.seed(tmp_path)
    assert any(row[1] == "agentflow_jobs" for row in tables(tmp_path / seeding.FILE))


def config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="on")


async def test_a_server_that_is_told_to_go_answers_first_and_closes_its_application() -> None:
    asked, order = asyncio.Event(), list[str]()

    async def slow(request: Request) -> PlainTextResponse:
        asked.set()
        await asyncio.sleep(0.2)
        order.append("answered")
        return PlainTextResponse("late")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        order.append("closed")

    app = Starlette(routes=[Route("/", slow)], lifespan=lifespan)
    async with httpx.AsyncClient() as http:
        async with served(config(app)) as server:
            url = url_of(server)
            asking = asyncio.create_task(http.get(url))
            await asked.wait()
        assert (await asking).text == "late"
        with pytest.raises(httpx.ConnectError):
            await http.get(url)
    assert order == ["answered", "closed"]


async def test_an_application_that_does_not_start_is_told() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    with pytest.raises(RuntimeError, match="does not start"):
        async with served(config(Starlette(lifespan=lifespan))):
            pass  # pragma: no cover


async def test_a_guest_leaves_the_signals_to_its_host() -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with served(config(Starlette())):
        assert signal.getsignal(signal.SIGTERM) is before
