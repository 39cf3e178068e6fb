"""Design rule 1, seen at the database: who runs which statement."""

from __future__ import annotations

import asyncio
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import orjson
import pytest
from support.fakes import Fake, deliver, running, tell, until

from agentflow import (
    AgentFlow,
    Failed,
    JobSpec,
    Progressed,
    ProviderError,
    Result,
    Succeeded,
    worker,
)
from agentflow.store import postgres_asyncpg, sqlite

WRITERS = {"agentflow-writer", "agentflow-owed"}
INSERTABLE = {
    "agentflow_jobs",
    "agentflow_attempts",
    "agentflow_history",
    "agentflow_tags",
    "agentflow_inbox",
}
_WRITE = re.compile(r'\s*(INSERT INTO|UPDATE|DELETE FROM)\s+"(agentflow_\w+)"', re.I)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(asyncio task, statement) of everything that is executed."""
    seen: list[tuple[str, str]] = []
    for cls in (sqlite.EmbeddedClient, sqlite.Transaction):
        run = cls._run

        async def spy(self: Any, sql: str, step: Any, run: Any = run) -> Any:
            task = asyncio.current_task()
            seen.append((task.get_name() if task else "?", sql))
            return await run(self, sql, step)

        monkeypatch.setattr(cls, "_run", spy)
    for server in (postgres_asyncpg.PostgresClient, postgres_asyncpg.Transaction):
        call = server._translate_exceptions

        async def spy_too(self: Any, func: Any, sql: str, *args: Any, call: Any = call) -> Any:
            task = asyncio.current_task()
            seen.append((task.get_name() if task else "?", sql))
            return await call(self, func, sql, *args)

        monkeypatch.setattr(server, "_translate_exceptions", spy_too)
    return seen


async def test_only_the_writer_updates_rows(
    tmp_path: Path, statements: list[tuple[str, str]]
) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])

    @app.on("fake.work", "succeeded")
    async def again(event: Any, tx: Any) -> Any:
        return JobSpec("fake.work", {}) if event.job.entity_id == "1" else None

    @app.on("fake.work", "failed", after_commit=True)
    async def later(event: Any) -> None: ...

    async with running(tmp_path, fake, app=app):
        await whole_road(app)
        await asyncio.sleep(0.1)
    writes = [(who, _WRITE.match(sql)) for who, sql in statements]
    found = [(who, m[1].upper(), m[2]) for who, m in writes if m]
    others = {(verb, table) for who, verb, table in found if who not in WRITERS}
    assert others <= {("INSERT INTO", table) for table in INSERTABLE}, others
    updated = {table for who, verb, table in found if verb == "UPDATE"}
    assert updated >= {"agentflow_jobs", "agentflow_attempts", "agentflow_inbox"}
    assert any(who == "agentflow-intake" for who, _, _ in found), "the spy saw the web role write"


async def whole_road(app: AgentFlow) -> None:
    """Submit, call, progress, webhook, fail, cancel, retry, poll: everything that moves a row."""
    first = await app.submit("fake.work", {}, entity="t:1", tags=["a"])
    await until(app, first.id, "waiting")
    await tell(app, first.id, Progressed(fraction=0.5, attempt=1))
    fact = {"id": f"ext-{first.id}-1", "event": "succeeded", "fields": {"result": {"output": 1}}}
    await deliver(app, orjson.dumps([fact]), id="d1")
    await until(app, first.id, "succeeded")
    second = await app.submit("fake.work", {})
    await until(app, second.id, "waiting")
    await tell(app, second.id, Failed(ProviderError("no"), attempt=1))
    third = await app.submit("fake.work", {})
    await until(app, third.id, "waiting")
    await third.cancel()
    async with app.transaction() as tx:
        fourth = await app.submit("fake.work", {}, using_db=tx)
    await until(app, fourth.id, "waiting")
    await tell(app, fourth.id, Succeeded(Result(text="x"), attempt=1))
    app.runtime.clock.advance(400)
    await app.runtime.writer.settled()


def test_a_worker_has_no_way_to_the_database() -> None:
    modules = [
        import_module(f"agentflow.worker.{module.name}") for module in iter_modules(worker.__path__)
    ]
    assert {"agentflow.worker.attempt", "agentflow.worker.chores"} <= {m.__name__ for m in modules}
    for module in modules:
        names = {getattr(v, "__module__", "") or "" for v in vars(module).values()}
        assert not any(n.startswith(("tortoise", "agentflow.store", "aiosqlite")) for n in names)
