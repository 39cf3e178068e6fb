"""The whole test: a cluster, its clients and a storm; then peace, and everything is looked at."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from support.crash.books import Books, read_postgres
from support.crash.checks import counted, wrong

from chaos.clients import Clients
from chaos.cluster import Cluster, cluster
from chaos.faults import Storm, Struck
from chaos.figures import declared_dead, figures, slowest, table


@dataclass(frozen=True)
class Plan:
    """`rate` is in jobs a second, `scale` shortens faults, `patience` is how many seconds after
    the storm everything must be final; `checks` are the looks for a call of unknown outcome, and
    for the end of a canceled one."""

    jobs: int
    faults: int
    seed: int
    rate: float
    scale: float = 1.0
    patience: float = 180.0
    checks: int = 4


@dataclass
class Outcome:
    """`problems` are sentences: none if all is right."""

    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


async def run(plan: Plan, folder: Path) -> Outcome:
    outcome, started = Outcome(), time.time()
    async with cluster(folder, plan.seed, plan.checks) as world:
        clients = Clients(world.urls, random.Random(plan.seed))
        storm = Storm(world, random.Random(plan.seed), plan.scale)
        began = time.time()
        following = asyncio.create_task(clients.submit_all(plan.jobs, plan.rate))
        await storm.rage(plan.faults, plan.jobs / plan.rate)
        calm = time.time()
        try:
            async with asyncio.timeout(plan.patience + plan.jobs / plan.rate):
                await following
                await _all_final(world, plan.patience)
                await clients.retry_handlers()
                await _all_final(world, plan.patience)
        except TimeoutError:
            outcome.problems.append(f"not all was final {plan.patience:.0f} s after the storm")
        still = time.time()
        await clients.close()
        outcome.lines += [
            f"seed {plan.seed}: {len(clients.accepted)} jobs, {len(storm.struck)} faults in"
            f" {calm - began:.0f} s, after a start of {began - started:.0f} s;"
            f" all final {still - calm:.0f} s later",
            f"clients: {dict(clients.counts)}, {len(clients.canceled)} canceled while open",
        ]
        await _look(world, clients, storm.struck, outcome)
    return outcome


async def _all_final(world: Cluster, patience: float) -> None:
    """Nothing is open, unread or owed any more."""
    db = await asyncpg.connect(world.database_url)
    try:
        async with asyncio.timeout(patience):
            while await db.fetchval(
                "SELECT EXISTS (SELECT 1 FROM agentflow_jobs WHERE finished_at IS NULL)"
                " OR EXISTS (SELECT 1 FROM agentflow_inbox WHERE status = 'received')"
                " OR EXISTS (SELECT 1 FROM agentflow_handler_runs WHERE status = 'pending')"
            ):
                await asyncio.sleep(0.3)
    finally:
        await db.close()


async def _look(world: Cluster, clients: Clients, struck: list[Struck], outcome: Outcome) -> None:
    books = await read_postgres(world.database_url)
    outcome.problems += wrong(books, clients.accepted, world.sim, world.files)
    outcome.problems += clients.broken
    outcome.problems += _unheard(books, clients.canceled)
    outcome.problems += await _audited(world)
    outcome.problems += _healthy_declared_dead(books, struck)
    ends = Counter(f"{job['status']} {job['reason']}" for job in books.jobs)
    deaths = {role.name: len(role.deaths) for role in world.roles.values() if role.deaths}
    outcome.lines += [
        f"ends: {dict(ends.most_common())}",
        f"seen: {dict(counted(books))}; provider: {dict(world.sim.stats.faults)}",
        f"ended by themselves: {deaths}",
        *table(figures(books, struck)),
        "the slowest that succeeded:",
        *(f"{job['id']}\n{books.told(job['id'])}" for job in slowest(books)),
    ]


def _unheard(books: Books, canceled: set[str]) -> list[str]:
    """Cancels that were answered 2xx and left no trace."""
    asked = {e["job_id"] for e in books.history if e["event"] == "cancel_requested"}
    commands = {row["job_id"] for row in books.inbox if row["kind"] == "command"}
    return [f"the cancel of {id} is lost" for id in canceled if id not in asked & commands]


async def _audited(world: Cluster) -> list[str]:
    done = await asyncio.to_thread(world.run, "audit", "--json")
    try:
        said = json.loads(done.stdout)
    except ValueError:
        return [f"agentflow audit: {done.stdout}{done.stderr}"]
    return [f"audit: {item}" for item in said["items"]] if not said["clean"] else []


def _healthy_declared_dead(books: Books, struck: list[Struck]) -> list[str]:
    return [
        f"{name} was healthy and declared dead\n{books.told(entry['job_id'])}"
        for entry, name, faults in declared_dead(books, struck)
        if not faults
    ]
