"""What holds only on SQLite, where one process has the database and nobody writes beside it.

Its predecessor is dead, so that what that left behind is settled before the start is over. On
PostgreSQL others may be at work: leases tell who is dead.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.fakes import Fake, reasons, rows, running, until
from support.patience import PATIENCE
from support.shop.models import Note
from tortoise.connection import get_connection

from agentflow import AgentFlow, Succeeded
from agentflow.core.events import Envelope, Source
from agentflow.errors import UsageError
from agentflow.transport.conversation import Claim
from agentflow.types import JobId, utcnow

DATABASES = ("sqlite",)


async def test_an_attempt_of_a_dead_process_is_unknown_and_found_not_repeated(
    tmp_path: Path,
) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    async with running(tmp_path, fake, app=app):
        await app.runtime.serving.stop(0)
        job = await app.submit("fake.work", {})
        await app.runtime.conversation.claim(Claim(job.id, 1, "n", "dead"))
    again = Fake()
    again.found = "ext-found"
    async with running(tmp_path, again) as app:
        view = await until(app, job.id, "waiting")
        async with asyncio.timeout(PATIENCE):
            while view["external_id"] is None:
                view = await app.job(job.id).status()
        assert view["external_id"] == "ext-found"
        assert again.calls == {}, "nothing was called again"
        assert ("abandoned", "applied", "submit_unknown") in await reasons(job.id)


async def test_handlers_of_what_the_last_process_left_behind_may_submit(tmp_path: Path) -> None:
    """They run before the start is over."""
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])

    @app.on("fake.work", "succeeded")
    async def go_on(event: Any, tx: Any) -> None:
        await app.submit("fake.work", {}, using_db=tx)

    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        left = Envelope("out", Source.WORKER, utcnow(), JobId(job.id), Succeeded(attempt=1))
        app.runtime.worker.reports.spool.add(left)
    async with running(tmp_path, fake, app=app, synchronous="NORMAL"):
        assert await rows("SELECT * FROM agentflow_handler_runs") == []
        assert len(await rows("SELECT * FROM agentflow_jobs")) == 2


async def test_a_write_beside_the_transaction_says_what_to_write(tmp_path: Path) -> None:
    app = AgentFlow(models=["support.shop.models"], plugins=[])
    async with running(tmp_path, Fake(), app=app):
        root = get_connection("default")
        async with app.transaction():
            with pytest.raises(UsageError, match="leave `using_db` out, or pass the `tx`"):
                await Note.create(text="a", using_db=root)
            await Note.create(text="b")  # forgotten, and found by the task
        assert [note.text for note in await Note.all()] == ["b"]
