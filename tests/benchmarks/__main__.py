"""`make bench`: the whole embedded road against a hand-written one, in the same run.

The road: submit, claim, grant, call, report, final, with `synchronous=FULL` and 64 in flight. The
peer is what people write first: a Tortoise row created, the same call made, the row updated; it
has no queue, no grant, no history and no retry, so a ratio of 1 is not to be expected.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tortoise import Tortoise, fields
from tortoise.models import Model

from agentflow import AgentFlow, Provider, Result, Settings

IN_FLIGHT = 64
ROUNDS = 3


class HandMade(Model):
    id = fields.IntField(primary_key=True)
    status = fields.CharField(max_length=16)
    output = fields.JSONField(null=True)

    class Meta:
        table = "hand_made"


async def provider_call() -> dict[str, int]:
    await asyncio.sleep(0)
    return {"n": 1}


async def flood(one: Callable[[int], Awaitable[object]], jobs: int) -> float:
    """Jobs per second with `IN_FLIGHT` at once."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def gated(n: int) -> None:
        async with gate:
            await one(n)

    began = time.perf_counter()
    await asyncio.gather(*(gated(n) for n in range(jobs)))
    return jobs / (time.perf_counter() - began)


async def hand_made(data: Path, jobs: int) -> float:
    await Tortoise.init(
        db_url=f"sqlite://{data / 'hand.db'}?synchronous=FULL", modules={"models": [__name__]}
    )
    await Tortoise.generate_schemas()

    async def one(n: int) -> None:
        row = await HandMade.create(status="running")
        output = await provider_call()
        await HandMade.filter(id=row.id).update(status="succeeded", output=output)

    try:
        return await flood(one, jobs)
    finally:
        await Tortoise.close_connections()


async def agentflow(data: Path, jobs: int, handler: bool) -> float:
    provider = Provider("bench")

    @provider.task("call")
    async def call(call: object, input: object) -> Result:
        return Result(output=await provider_call())

    app = AgentFlow(providers=[provider], plugins=[], settings=Settings(data_dir=data))
    if handler:

        @app.on("bench.call", "succeeded")
        async def note(event: object, tx: object) -> None: ...

    async with app.lifespan():

        async def one(n: int) -> None:
            job = await app.submit("bench.call", {"n": n})
            await job.result(60)

        await flood(one, 100)
        return await flood(one, jobs)


SYSTEMS: dict[str, Callable[[Path, int], Awaitable[float]]] = {
    "hand-made row": hand_made,
    "agentflow": lambda data, jobs: agentflow(data, jobs, handler=False),
    "agentflow + handler": lambda data, jobs: agentflow(data, jobs, handler=True),
}


def measured(name: str, jobs: int) -> float:
    """Jobs per second of one system, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks", str(jobs), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def compare(jobs: int) -> None:
    print(f"{jobs} jobs, {IN_FLIGHT} in flight, synchronous=FULL, medians of {ROUNDS} rounds")
    found: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for _ in range(ROUNDS):
        for name in SYSTEMS:
            found[name].append(measured(name, jobs))
    peer = sorted(found["hand-made row"])[ROUNDS // 2]
    for name, figures in found.items():
        middle = sorted(figures)[ROUNDS // 2]
        print(f"  {name:<20} {middle:7.0f} jobs/s   x {middle / peer:.2f} of hand-made")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    if len(sys.argv) > 2:
        with tempfile.TemporaryDirectory() as folder:
            print(asyncio.run(SYSTEMS[sys.argv[2]](Path(folder), count)))  # type: ignore[arg-type]
    else:
        compare(count)
