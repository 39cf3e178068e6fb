"""A provider that does what the test says, and an application around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tortoise.connection import get_connection

from agentflow import Accepted, AgentFlow, Call, Delivery, Fact, Policy, Provider, Settings
from agentflow.core.events import Envelope, Event, Source
from agentflow.core.providers import Verified
from agentflow.store import queries
from agentflow.store.inserts import InboxEntry
from agentflow.store.sql import Sql
from agentflow.types import JobId, new_id, utcnow
from support.patience import PATIENCE


class Anything:
    """A scheme for tests that are not about signatures."""

    def verifier(self, settings: Any) -> Anything:
        return self

    def check(self) -> None: ...

    def verify(self, headers: Any, body: bytes, now: Any) -> Verified:
        return Verified(headers.get("x-id"))


class Work(BaseModel):
    n: int = 0


class Fake:
    """`calls` holds the external id of every call made, by job."""

    def __init__(self, policy: Policy | None = None, webhooks: str = "per_request") -> None:
        self.calls: dict[str, list[int]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers: dict[int, Any] = {}
        self.fetched: list[str] = []
        self.canceled: list[str] = []
        self.found: str | None = None
        self.news: Any = None
        self.provider = Provider("fake", webhooks=webhooks, scheme=Anything())  # type: ignore[arg-type]
        task = self.provider.task("work", input=Work, policy=policy or Policy())(self._work)
        task.fetch(self._fetch)
        task.find(self._find)
        task.cancel(self._cancel)
        self.provider.parse(parse)

    async def _work(self, call: Call, input: Work) -> Any:
        self.calls.setdefault(call.job_id, []).append(call.attempt)
        await self.gate.wait()
        answer = self.answers.get(input.n, Accepted(f"ext-{call.job_id}-{call.attempt}"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _fetch(self, call: Call, external_id: str) -> Any:
        self.fetched.append(external_id)
        return self.news

    async def _find(self, call: Call, token: str, since: Any) -> str | None:
        return self.found

    async def _cancel(self, call: Call, external_id: str) -> Any:
        self.canceled.append(external_id)
        return None


def parse(delivery: Delivery) -> list[Fact]:
    """`[{"id": …, "event": "succeeded", "fields": {…}}]`"""
    from agentflow.core.events import load_event

    return [
        Fact(load_event(said["event"], said.get("fields", {})), said.get("id"))  # type: ignore[arg-type]
        for said in delivery.json
    ]


@asynccontextmanager
async def running(
    data: Path, fake: Fake, *, app: AgentFlow | None = None, **options: Any
) -> AsyncIterator[AgentFlow]:
    options = {"grace": 0.2, "synchronous": "NORMAL", **options}
    settings = Settings(data_dir=data, public_url="http://agentflow.test", **options)
    app = app or AgentFlow(providers=[fake.provider], plugins=[])
    app._settings = settings
    async with app.lifespan():
        yield app


async def tell(app: AgentFlow, job: str, event: Event, id: str | None = None) -> None:
    """As a worker would report it."""
    envelope = Envelope(id or new_id("told"), Source.WORKER, utcnow(), JobId(job), event)
    await app.runtime.conversation.report(envelope)


async def deliver(app: AgentFlow, body: bytes, *, token: str | None = None, id: str) -> None:
    """As the webhook route would store it, and wait until it was read."""
    entry = InboxEntry(
        id=new_id("dlv"),
        kind="webhook",
        body=body,
        received_at=utcnow(),
        provider="fake",
        dedup_key=f"id:{id}",
        token=token,
    )
    await app.runtime.intake.add_inbox(entry)
    await app.runtime.writer.settled()


async def until(
    app: AgentFlow, job: str, *statuses: str, seconds: float = PATIENCE
) -> dict[str, Any]:
    """The job once it has one of the statuses."""
    async with asyncio.timeout(seconds):
        while True:
            view = await queries.get_job("default", job)
            if view["status"] in statuses:
                return view
            await asyncio.sleep(0.005)


async def rows(query: str, *values: Any) -> list[dict[str, Any]]:
    return await Sql(get_connection("default")).rows(query, values)


async def reasons(job: str) -> list[tuple[str, str, str]]:
    """(event, disposition, reason) of the job's history."""
    found = await queries.history("default", job)
    return [(e["event"], e["disposition"], e["reason"]) for e in found]
