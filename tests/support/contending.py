"""One of several processes on one PostgreSQL database: it calls, writes and delivers.

`python -m support.contending JOBS` races for so many jobs; with 0 it stands still in a transaction.
It says a word per line, and goes on when it reads one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from typing import Any

import orjson
from pydantic import BaseModel

from agentflow import Accepted, AgentFlow, Call, Policy, Provider, Unavailable
from agentflow.core.job import FINAL
from agentflow.store import queries
from agentflow.store.inserts import InboxEntry
from agentflow.types import JsonObject, new_id, utcnow
from support.fakes import Anything, parse
from support.shop.models import Note

provider = Provider("fake", webhooks="account", scheme=Anything())
app = AgentFlow(models=["support.shop.models"], providers=[provider], plugins=[])


class Work(BaseModel):
    n: int = 0


@provider.task("work", input=Work, policy=Policy(backoff=0.05))
async def work(call: Call, input: Work) -> Accepted:
    if input.n % 7 == 3 and call.attempt == 1:
        raise Unavailable("not today")
    return Accepted(f"ext-{call.job_id}-{call.attempt}")


provider.parse(parse)


@app.on("fake.work", "succeeded")
@app.on("fake.work", "failed")
@app.on("fake.work", "canceled")
@app.on("fake.work", "expired")
async def note(event: Any, tx: Any) -> None:
    """A second one for the same job is refused by the database."""
    await Note.create(text=event.job.id, using_db=tx)


@app.on("fake.work", "succeeded", after_commit=True)
async def note_later(event: Any) -> None:
    await Note.create(text=f"later {event.job.id}")


@app.on("fake.work", "progress")
async def freeze(event: Any, tx: Any) -> None:
    if event.progress.message == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)


def say(word: str) -> None:
    print(word, flush=True)


async def told() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def deliver(external_id: str, event: str, key: str | None = None, **fields: Any) -> None:
    entry = InboxEntry(
        id=new_id("dlv"),
        kind="webhook",
        body=orjson.dumps([{"id": external_id, "event": event, "fields": fields}]),
        received_at=utcnow(),
        provider="fake",
        dedup_key=f"id:{key or new_id('msg')}",
    )
    await app.runtime.intake.add_inbox(entry)


async def until(id: str, *statuses: str) -> JsonObject:
    async with asyncio.timeout(60):
        while (job := await queries.get_job("default", id))["status"] not in statuses:
            await asyncio.sleep(0.02)
    return job


async def push(n: int, handle: Any) -> None:
    """Say of the job what the others say too, at the same time, until it has ended."""
    async with asyncio.timeout(60):
        while (job := await queries.get_job("default", handle.id))["status"] not in FINAL:
            name = f"ext-{handle.id}-{job['attempt']}"
            await deliver(name, "progressed", fraction=random.random())
            if n % 5 == 1:
                await handle.cancel()
            await deliver(name, "succeeded", key=f"done {name}")
            await deliver(name, "succeeded")
            await asyncio.sleep(random.uniform(0.02, 0.1))


async def race(jobs: int) -> None:
    """All processes submit the same jobs, and push each of them."""
    say("ready")
    await told()
    handles = await asyncio.gather(
        *(app.submit("fake.work", {"n": n}, idempotency_key=f"k{n}") for n in range(jobs))
    )
    await asyncio.gather(*(push(n, handle) for n, handle in enumerate(handles)))
    await app.runtime.writer.settled()


async def stand_still() -> None:
    """Stop in the midst of a transaction that holds a job and its delivery."""
    job = await app.submit("fake.work", {})
    await until(job.id, "waiting")
    say(job.id)
    await told()
    await deliver(f"ext-{job.id}-1", "progressed", message="freeze")
    await until(job.id, *FINAL)


async def main(jobs: int) -> None:
    async with app.lifespan():
        await (race(jobs) if jobs else stand_still())
        say("done")
        await told()  # others may still need this process


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
