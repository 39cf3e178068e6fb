"""Jobs of every provider under every fault of theirs and of ours, in one process and in many."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path

from agentflow_replicate.simulator import ReplicateSimulator, simulator
from chaos.clients import Clients
from chaos.cluster import PROVIDER_FAULTS, cluster
from chaos.faults import Storm
from chaos.storm import Outcome, Plan
from support.crash.books import Books, read_postgres, read_sqlite
from support.crash.checks import counted, wrong
from support.crash.server import Server, all_final

from agentflow.core.job import FINAL
from agentflow.core.submission import CALLBACK_TASK
from agentflow.webhooks.signatures import new_secret
from mixed.orders import kinds, orders
from mixed.providers import Providers, providers

TASKS = sorted({CALLBACK_TASK, *(make(0, random.Random(0)).task for make in kinds(""))})


async def embedded(plan: Plan, folder: Path) -> Outcome:
    """One process on SQLite, killed with -9 again and again."""
    dice, began = random.Random(plan.seed), time.monotonic()
    async with simulator(new_secret(), "r8_mixed").serve() as sim, providers(plan.seed) as world:
        sim.faults.update({"seed": plan.seed, **PROVIDER_FAULTS})
        data = folder / "data"
        server = Server(data, sim, folder / "server.log", _settings(world, plan))
        world.hear(server.url)
        await server.start()
        clients = Clients(
            [server.url], random.Random(plan.seed), orders(world.receiver.hook, world.shop)
        )
        submitting = asyncio.create_task(clients.submit_all(plan.jobs, plan.rate))
        for _ in range(plan.faults):
            await asyncio.sleep(dice.uniform(0.2, 2.0 * plan.jobs / plan.rate / plan.faults))
            await server.kill()
            await server.start()
        outcome = await _ended(submitting, all_final(server.url), plan)
        await clients.retry_handlers()
        await clients.close()
        await server.stop()
        books = read_sqlite(data / "agentflow.db")
        outcome.problems += _wrong(books, clients, sim, world, data / "artifacts")
        env = {**server.env, "AGENTFLOW_APP": "support.crash.main:app"}
        outcome.problems += await asyncio.to_thread(_audit, env)
        outcome.lines += _figures(books, world, time.monotonic() - began, f"{plan.faults} kills")
        return outcome


async def scaled(plan: Plan, folder: Path) -> Outcome:
    """Many processes on PostgreSQL and Redis, under the storm."""
    began = time.monotonic()
    async with providers(plan.seed) as world:
        more = _settings(world, plan)
        async with cluster(folder, plan.seed, plan.checks, more) as run:
            world.hear(run.urls[0])
            dice = random.Random(plan.seed)
            clients = Clients(run.urls, dice, orders(world.receiver.hook, world.shop))
            storm = Storm(run, random.Random(plan.seed), plan.scale)
            submitting = asyncio.create_task(clients.submit_all(plan.jobs, plan.rate))
            await storm.rage(plan.faults, plan.jobs / plan.rate)
            outcome = await _ended(submitting, all_final(run.urls[0]), plan)
            await clients.retry_handlers()
            await all_final(run.urls[0])
            await clients.close()
            books = await read_postgres(run.database_url)
            outcome.problems += _wrong(books, clients, run.sim, world, run.files)
            done = await asyncio.to_thread(run.run, "audit")
            outcome.problems += [] if done.returncode == 0 else [f"audit: {done.stdout}"]
        what = dict(Counter(s.kind for s in storm.struck))
        outcome.lines += _figures(books, world, time.monotonic() - began, f"{what}")
        return outcome


def _settings(world: Providers, plan: Plan) -> dict[str, str]:
    return {**world.env, "CRASH_TASKS": " ".join(TASKS), "CRASH_CHECKS": str(plan.checks)}


async def _ended(submitting: asyncio.Task[None], final: Awaitable[None], plan: Plan) -> Outcome:
    outcome = Outcome()
    try:
        async with asyncio.timeout(plan.patience + plan.jobs / plan.rate):
            await submitting
            await final
    except TimeoutError:
        outcome.problems.append(f"not all was final {plan.patience:g} s after the storm")
    return outcome


def _audit(env: dict[str, str]) -> list[str]:
    program = [sys.executable, "-m", "agentflow", "audit"]
    done = subprocess.run(program, env=env, capture_output=True, text=True)
    return [] if done.returncode == 0 else [f"audit: {done.stdout}{done.stderr}"]


def _wrong(
    books: Books, clients: Clients, sim: ReplicateSimulator, world: Providers, files: Path
) -> list[str]:
    """`wrong` looks at Replicate, and at what is everybody's; the rest is here."""
    problems = [*wrong(books, clients.accepted, sim, files), *clients.broken]
    jobs = Counter(job["entity"] for job in books.jobs)  # which a retry by hand shares
    for name, created in world.created():
        problems += [
            f"{name}: {times} calls of {key}"
            for key, times in created.items()
            if times > max(1, jobs[key])
        ]
    return [*problems, *_untold(books, world)]


def _untold(books: Books, world: Providers) -> list[str]:
    """Who asked to be called back was, with the end the job came to."""
    problems = [f"{world.receiver.forged} callbacks were not signed"] * bool(world.receiver.forged)
    told = {event["data"]["id"]: event["data"] for event in world.receiver.heard.values()}
    if len(told) != len(world.receiver.heard):
        problems.append("a job was called back for more than one end")
    for job in books.jobs:
        if job["task"] == CALLBACK_TASK or job["callback_url"] is None:
            continue
        said = told.get(job["id"])
        if said is None or said["status"] != job["status"]:
            problems.append(f"{job['id']} is {job['status']}, its callback said {said}")
    return problems


def _figures(books: Books, world: Providers, seconds: float, what: str) -> list[str]:
    ends = Counter(f"{job['task']} {job['status']}" for job in books.jobs)
    reasons = Counter(job["reason"] for job in books.jobs if job["status"] != "succeeded")
    faults = {name: dict(sim.stats.faults) for name, sim in world.sims.items()}
    final = sum(job["status"] in FINAL for job in books.jobs)
    return [
        f"{len(books.jobs)} jobs, {final} final, in {seconds:.0f} s under {what}",
        *(f"  {end}: {count}" for end, count in sorted(ends.items())),
        f"  not succeeded: {dict(reasons.most_common())}",
        f"  seen: {dict(counted(books))}; providers: {faults}",
        f"  callbacks: {len(world.receiver.heard)}, taken {world.receiver.times.total()} times",
    ]
