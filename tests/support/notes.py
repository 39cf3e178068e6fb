"""An application with notes of its own, and what its handlers left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentflow import AgentFlow, Result, Succeeded
from agentflow.testing.application import AppUnderTest
from support.fakes import Fake, rows, tell, until
from support.shop.models import Note


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
