"""An application's own tests: its handlers, rows and tasks are real, its providers are not."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from tortoise.connection import get_connection

from agentflow.app import AgentFlow, JobHandle
from agentflow.core.events import dump_event, name_of
from agentflow.core.providers import Outcome
from agentflow.errors import UsageError
from agentflow.runtime import Runtime
from agentflow.settings import Settings
from agentflow.store.inserts import InboxEntry
from agentflow.store.queries import get_job
from agentflow.store.rows import instant, loads
from agentflow.store.sql import Sql
from agentflow.testing.seeding import seed
from agentflow.testing.stand_ins import MARK, Files, StandIns
from agentflow.types import JobId, Json, JsonObject, new_id
from agentflow.worker.serving import register_task

PUBLIC_URL = "http://agentflow.test"

_NOBODYS = "AGENTFLOW_OF_NOBODY_"
"""Variables with this prefix do not exist."""

_BUSY = """
SELECT "id" || ' (' || "task" || ') is ' || "status" AS "what" FROM "agentflow_jobs"
 WHERE "status" IN ('queued', 'running') OR "phase" = 'collecting' OR "wake_at" <= {0}
    OR ("status" = 'canceling' AND ("phase" IS NULL OR "phase" <> 'submit_unknown'))
UNION ALL SELECT 'delivery ' || "id" || ' is not read' FROM "agentflow_inbox"
 WHERE "status" = 'received' OR "wake_at" <= {1}
UNION ALL SELECT "handler" || ' is owed' FROM "agentflow_handler_runs"
 WHERE "status" = 'pending' AND "wake_at" <= {2}
"""
_ALARMS = """
SELECT MIN("at") AS "at" FROM (
 SELECT "wake_at" AS "at" FROM "agentflow_jobs"
 UNION ALL SELECT "wake_at" FROM "agentflow_inbox"
 UNION ALL SELECT "wake_at" FROM "agentflow_handler_runs" WHERE "status" = 'pending') AS "alarms"
"""


@asynccontextmanager
async def app(
    application: AgentFlow,
    *,
    handlers_may_fail: bool = False,
    patience: float = 10.0,
    **settings: Any,
) -> AsyncIterator[AppUnderTest]:
    """Run `application` with stand-ins for its providers, on a database that is thrown away.

        async def test_a_finished_image_is_saved() -> None:
            async with testing.app(shop.app) as t:
                shot = await Shot.create(prompt="a cat")
                job = await shop.app.submit("replicate.predict", {...}, entity=f"shot:{shot.id}")
                await t.deliver(job, Succeeded(Result(artifacts=[Artifact("https://x/cat.png")])))
                await shot.refresh_from_db()
                assert shot.image

    Handlers, `@app.task`s, models and the writer are the real ones; there is no server, no network
    and no key, and no plugin need be installed. A call of a provider's task is accepted, and its
    job waits until the test delivers what became of it, or until time is up. Files of results are
    made up; `t.files` says otherwise. To test an API round the application, ask it through
    `httpx.ASGITransport`, which leaves the lifespan to this.

    After each step everything has come to rest: what could run has run, handlers too, and whatever
    they started waits. A handler that fails makes the step raise `AssertionError` with its
    traceback, unless `handlers_may_fail`. `patience` is how many real seconds a step may take;
    `settings` are those of `Settings`, whatever the environment says.
    """
    with tempfile.TemporaryDirectory(prefix="agentflow-test-") as folder:
        values = {"synchronous": "NORMAL", "grace": 0.0, "public_url": PUBLIC_URL, **settings}
        made = Settings(_env_prefix=_NOBODYS, data_dir=Path(folder), **values)  # type: ignore[call-arg]  # of pydantic-settings
        catalogue = StandIns(application.providers, made.public_url or PUBLIC_URL)
        runtime = application.assemble(made, catalogue)
        under_test = AppUnderTest(runtime, catalogue, patience, handlers_may_fail)
        if made.database("writer") is None:
            await seed(made.data_dir)
        await application.run_on(runtime)
        try:
            yield under_test
        finally:
            await application.stop()


class AppUnderTest:
    """What `testing.app` gives. `files` maps a URL to its content, None meaning 404."""

    def __init__(
        self, runtime: Runtime, catalogue: StandIns, patience: float, handlers_may_fail: bool
    ) -> None:
        self._runtime, self._catalogue = runtime, catalogue
        self._patience, self._handlers_may_fail = patience, handlers_may_fail
        self._failures: set[tuple[str, int]] = set()
        catalogue.on_task = lambda name: register_task(runtime.broker, runtime.worker, name)
        files = Files()
        self.files = files.given
        runtime.worker.files.downloads = files.client()

    def script(self, task: str, *outcomes: Any) -> None:
        """What the next calls of a provider's task come to, one after another.

        An outcome is whatever a task may return (`Succeeded(…)`, `Accepted("id")`, a `Result`,
        any JSON), or an exception it may raise (`RateLimited()`).
        """
        self._catalogue.task(task)
        if self._is_own(task):
            raise UsageError(f"{task} is the application's own task: it really runs")
        self._catalogue.scripts[task].extend(outcomes)

    async def deliver(self, job: JobHandle | JsonObject | str, event: Outcome) -> None:
        """Let the provider say by webhook what became of a job's present attempt.

        `event` is a `Succeeded`, `Failed`, `Canceled`, `Progressed`, `Changed` or `Accepted`.
        """
        await self.settle()
        found = await self._rows(
            'SELECT j."task", a."token", a."external_id" FROM "agentflow_jobs" j'
            ' JOIN "agentflow_attempts" a ON a."job_id" = j."id" AND a."number" = j."attempt"'
            ' WHERE j."id" = {0}',
            _id(job),
        )
        if not found:
            raise UsageError(f"There is no job {_id(job)}")
        row = found[0]
        if self._is_own(row["task"]):
            raise UsageError(f"{row['task']} is the application's own task: no webhook is about it")
        body = {
            "type": name_of(event),
            "fields": orjson.Fragment(dump_event(event)),
            "external_id": row["external_id"],
        }
        provider = row["task"].partition(".")[0]
        await self._receive(provider, orjson.dumps(body), token=row["token"], headers={MARK: "1"})

    async def webhook(
        self, provider: str, body: Json, *, id: str | None = None, token: str | None = None
    ) -> None:
        """Let a provider send a webhook in its own words: bytes, or what is sent as JSON.

        One with the `id` of an earlier one is a duplicate. It is for `@app.on_webhook`; what it
        says about jobs is understood if the application described the provider, parser and all.
        """
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        self._catalogue.provider(provider)
        await self._receive(provider, raw, token=token, id=id)

    async def advance(self, seconds: float) -> None:
        """Let time pass, from alarm to alarm: delays, backoffs, time limits, deadlines."""
        await self.settle()
        clock = self._runtime.clock
        left = seconds
        while left > 0:
            due = await self._next_alarm()
            step = left if due is None else (due - clock.now()).total_seconds()
            step = min(max(step, 0.0), left)
            clock.advance(step)
            left -= step
            await self.settle()

    async def settle(self) -> None:
        """Wait until nothing moves any more. Raises `AssertionError` for handlers that failed,
        and `TimeoutError`, saying what still moves."""
        busy: list[JsonObject] = []
        try:
            async with asyncio.timeout(self._patience):
                while busy := await self._busy():  # noqa: ASYNC110 - the database has no event
                    await asyncio.sleep(0.002)
        except TimeoutError:
            said = "; ".join(row["what"] for row in busy[:5])
            raise TimeoutError(f"No rest after {self._patience:g} seconds: {said}") from None
        await self._show_failures()

    async def jobs(self) -> list[JsonObject]:
        """All jobs as the API shows them, with their `input`, oldest first."""
        found = await self._rows(
            'SELECT "id", "tenant", "input" FROM "agentflow_jobs" ORDER BY "id"'
        )
        return [
            {**await get_job(row["tenant"], row["id"]), "input": loads(row["input"])}
            for row in found
        ]

    async def _receive(
        self,
        provider: str,
        body: bytes,
        *,
        token: str | None,
        id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        entry = InboxEntry(
            id=new_id("dlv"),
            kind="webhook",
            body=body,
            received_at=self._runtime.clock.now(),
            provider=provider,
            dedup_key=f"id:{id or new_id('test')}",
            token=token,
            headers=headers or {},
        )
        await self._runtime.intake.add_inbox(entry)
        await self.settle()

    async def _busy(self) -> list[JsonObject]:
        await self._runtime.writer.settled()
        self._runtime.writer.owed.bell.set()
        now = self._runtime.clock.now()
        return await self._rows(_BUSY, now, now, now)

    async def _next_alarm(self) -> datetime | None:
        (row,) = await self._rows(_ALARMS)
        due: datetime | None = instant(row["at"])
        return due

    async def _show_failures(self) -> None:
        failed = await self._rows(
            'SELECT "id", "handler", "tries", "error" FROM "agentflow_handler_runs"'
            ' WHERE "error" IS NOT NULL ORDER BY "id"'
        )
        new = [row for row in failed if (row["id"], row["tries"]) not in self._failures]
        self._failures |= {(row["id"], row["tries"]) for row in new}
        if new and not self._handlers_may_fail:
            said = "\n".join(f"{row['handler']} failed:\n{row['error']}" for row in new)
            raise AssertionError(said)

    async def _rows(self, query: str, *values: Any) -> list[JsonObject]:
        sql = Sql(get_connection("default"))
        marks = [sql.mark(i + 1) for i in range(len(values))]
        return await sql.rows(query.format(*marks), list(values))

    def _is_own(self, task: str) -> bool:
        return self._catalogue.of_task(task).provider.local


def _id(job: JobHandle | JsonObject | str) -> JobId:
    match job:
        case JobHandle(id=id):
            return id
        case str(id):
            return JobId(id)
        case _:
            return JobId(job["id"])
