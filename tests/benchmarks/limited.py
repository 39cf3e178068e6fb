"""`python -m tests.benchmarks.limited`: three workers, a service that counts, and two kills.

A web, a writer and three workers on PostgreSQL and Redis call a provider with a limit of 50 calls a
second and 10 at once. Short calls make the rate bind, long ones the other. Two workers are killed
while they hold permits, and started again. It ends with 1 if a limit was broken, a permit was not
given back, or a call was made twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.counted import AT_ONCE, PER_SECOND, URL, Counting, counting
from support.servers import Postgres, RedisServer, ensure_servers, free_port

from agentflow import AsyncClient
from agentflow.transport.redis_link import connect
from agentflow.transport.redis_permits import LEASE, LIMITS

ROOT = Path(__file__).parents[2]
LEASES = f"{LIMITS}leases:counted/-/0/"
WINDOW = 1.0
SLACK = 2
"""Calls more than the rate in a window as the service sees it: what is sent a second apart may
come a millisecond less apart."""


class Workers:
    """Processes by name, that can be killed."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self._env, self._folder = {**os.environ, **env}, folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        role = name.partition("-")[0]
        options = ["--open"] if role == "serve" else []
        env = {**self._env, "AGENTFLOW_DATA_DIR": str(self._folder / name)}
        with (self._folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "agentflow", role, *options], env=env, stderr=log, stdout=log
            )

    def kill(self, name: str) -> None:
        """kill -9"""
        self.running[name].kill()
        self.running[name].wait()

    async def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            await asyncio.to_thread(process.wait, 30)


class Scene:
    def __init__(self, client: AsyncClient, seen: Counting, roles: Workers, redis_url: str) -> None:
        self.client, self.seen, self.roles = client, seen, roles
        self.redis = connect(redis_url)
        self.wrong: list[str] = []

    async def submit(self, durations: list[float]) -> None:
        jobs = [{"task": "counted.work", "input": {"seconds": s}} for s in durations]
        for start in range(0, len(jobs), 500):
            await self.client.submit_many(jobs[start : start + 500])

    async def until(self, true: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.01)

    async def ended(self, seconds: float) -> None:
        """Until every job is final."""
        async with asyncio.timeout(seconds):
            for status in ("queued", "running", "scheduled", "waiting"):
                while [job async for job in self.client.jobs(status=status, page=1)]:
                    await asyncio.sleep(0.3)

    async def kill(self, name: str) -> None:
        """While it holds permits; then start it again, and see when all can be held once more."""
        pid = self.roles.running[name].pid
        await self.until(lambda: self.seen.under_way[pid] >= 2, 30)
        held = self.seen.under_way[pid]
        self.roles.kill(name)
        killed = time.monotonic()
        self.roles.start(name)
        await asyncio.sleep(1.0)
        since = time.monotonic()
        full = f"{AT_ONCE} at once again after "
        try:
            await self.until(lambda: self.seen.most_at_once(since) >= AT_ONCE, 2 * LEASE)
        except TimeoutError:
            self.wrong.append(f"permits of {name} are lost")
            return
        took = time.monotonic() - killed
        print(f"kill -9 of {name} with {held} calls under way: {full}{took:.1f} s")

    def judge(self) -> None:
        in_window, at_once = self.seen.most_in(WINDOW), self.seen.most_at_once()
        print(f"{len(self.seen.came)} calls; most in any {WINDOW:g} s: {in_window}", end="")
        print(f" (limit {PER_SECOND}); most at once: {at_once} (limit {AT_ONCE})")
        if in_window > PER_SECOND + SLACK:
            self.wrong.append("the rate was exceeded")
        if at_once > AT_ONCE:
            self.wrong.append("there were too many calls at once")
        if at_once < AT_ONCE:
            self.wrong.append("the limit never bound")
        if max(self.seen.keys.values()) > 1:
            self.wrong.append("an attempt was called twice")

    async def leftovers(self) -> None:
        left = await self.redis.zcard(LEASES)
        print(f"leases left when all is over: {left}")
        if left:
            self.wrong.append("leases are left")
        await self.redis.aclose()


async def play(scene: Scene, jobs: int, seed: int, kills: int) -> None:
    dice = random.Random(seed)
    await scene.submit([dice.uniform(0.02, 0.06) for _ in range(jobs)])
    began = time.monotonic()
    await scene.ended(60 + jobs / 10)
    pace = jobs / (time.monotonic() - began)
    print(f"{jobs} short calls: {pace:.1f} a second")
    for number in range(kills):
        calls = int(2.5 * LEASE * AT_ONCE / 0.6)
        await scene.submit([dice.uniform(0.4, 0.8) for _ in range(calls)])
        await scene.until(lambda: scene.seen.under_way.total() >= AT_ONCE, 60)
        await scene.kill(f"worker-{number + 1}")
        await scene.client.cancel_many(status="queued", dry_run=False)
    await scene.ended(180)
    scene.judge()
    await scene.leftovers()


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(Postgres())
        redis = stack.enter_context(RedisServer())
        seen = await stack.enter_async_context(counting())
        postgres.create_database("limited")
        port = free_port()
        env = {
            "AGENTFLOW_DATABASE_URL": postgres.url("limited"),
            "AGENTFLOW_REDIS_URL": redis.url(),
            "AGENTFLOW_ARTIFACTS_DIR": str(folder / "artifacts"),
            "AGENTFLOW_PORT": str(port),
            "AGENTFLOW_APP": "support.counted:app",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            URL: seen.url,
        }
        migrate = [sys.executable, "-m", "agentflow", "migrate", "--json"]
        subprocess.run(migrate, env={**os.environ, **env}, check=True, stdout=subprocess.DEVNULL)
        roles = Workers(env, folder)
        for name in ("serve-1", "writer-1", "worker-1", "worker-2", "worker-3"):
            roles.start(name)
        stack.push_async_callback(roles.stop)
        client = await stack.enter_async_context(AsyncClient(f"http://127.0.0.1:{port}"))
        await answering(client)
        yield Scene(client, seen, roles, redis.url())


async def answering(client: AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await client.health()
                return
            except Exception:
                await asyncio.sleep(0.1)


async def main(jobs: int, seed: int, kills: int) -> int:
    ensure_servers()
    with tempfile.TemporaryDirectory() as folder:
        async with staged(Path(folder)) as scene:
            try:
                await play(scene, jobs, seed, kills)
            except BaseException:
                for log in sorted(Path(folder).glob("*.log")):
                    print(log.name, log.read_text()[-1500:], file=sys.stderr)
                raise
    for said in scene.wrong:
        print("WRONG:", said)
    return 1 if scene.wrong else 0


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--jobs", type=int, default=1000)
    options.add_argument("--kills", type=int, default=2)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    sys.exit(asyncio.run(main(chosen.jobs, chosen.seed, chosen.kills)))
