"""A whole agentflow on one machine: its servers, its roles, the provider, all within reach."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
from agentflow_replicate.simulator import ReplicateSimulator, env, simulator
from support.proxy import Proxy
from support.servers import Postgres, RedisServer, free_port

from agentflow.webhooks.signatures import new_secret
from chaos.role import Role

ROOT = Path(__file__).parents[2]

ROLES = ("web-1", "web-2", "writer-1", "writer-2", "worker-1", "worker-2", "worker-3")

PROVIDER_FAULTS = {
    "duplicate": 0.1, "reorder": 0.1, "drop": 0.15, "delay": 0.05, "wrong_signature": 0.02,
    "reset": 0.03, "error_before": 0.02, "error_after": 0.03, "rate_limit": 0.03,
    "rate_limit_seconds": 1, "webhook_before_response": 0.03, "slow_body": 0.01,
}  # fmt: skip


@dataclass
class Cluster:
    folder: Path
    postgres: Postgres
    redis: RedisServer
    sim: ReplicateSimulator
    database_url: str
    """Straight to the server, past every proxy."""
    checks: int
    more: Mapping[str, str] = field(default_factory=dict)
    """Further settings of every process."""
    roles: dict[str, Role] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)

    @property
    def files(self) -> Path:
        return self.folder / "artifacts"

    def named(self, kind: str) -> list[Role]:
        return [role for role in self.roles.values() if role.kind == kind]

    def environment(self) -> dict[str, str]:
        """Of a command beside the roles, past every proxy."""
        return {
            "AGENTFLOW_DATABASE_URL": self.database_url,
            "AGENTFLOW_REDIS_URL": self.redis.url(),
            "AGENTFLOW_APP": "support.crash.main:app",
            "AGENTFLOW_ARTIFACTS_DIR": str(self.files),
            "AGENTFLOW_ALLOW_DOWNLOADS": f'["{urlsplit(self.sim.url).netloc}"]',
            "CRASH_CHECKS": str(self.checks),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            **env(self.sim),
            **self.more,
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`agentflow …`"""
        return subprocess.run(
            [sys.executable, "-m", "agentflow", *command],
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
        )

    async def ready(self) -> None:
        async with httpx.AsyncClient() as http, asyncio.timeout(60):
            for url in self.urls:
                while not await _answers(http, f"{url}/readyz"):
                    await asyncio.sleep(0.1)


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == 200
    except httpx.TransportError:
        return False


@asynccontextmanager
async def cluster(
    folder: Path, seed: int, checks: int, more: Mapping[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """Everything started and ready; in the end, everything ended. `checks`: see `Plan`."""
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(Postgres(durable=True))
        redis = stack.enter_context(RedisServer())
        sim = await stack.enter_async_context(simulator(new_secret(), "r8_chaos").serve())
        sim.faults.update({"seed": seed, **PROVIDER_FAULTS})
        postgres.create_database("chaos")
        url = postgres.url("chaos")
        world = Cluster(folder, postgres, redis, sim, url, checks, more or {})
        done = await asyncio.to_thread(world.run, "migrate")
        if done.returncode:
            raise RuntimeError(f"agentflow migrate: {done.stdout}{done.stderr}")
        ports = {name: free_port() for name in ROLES if name.startswith("web")}
        world.urls = [f"http://127.0.0.1:{port}" for port in ports.values()]
        for number, name in enumerate(ROLES):
            role = await _role(stack, world, name, world.urls[number % 2], ports.get(name, 0))
            world.roles[name] = role
            role.start()
            stack.push_async_callback(role.stop)
        await world.ready()
        yield world


async def _role(
    stack: AsyncExitStack, world: Cluster, name: str, public_url: str, port: int
) -> Role:
    """`public_url`: which web process hears the webhooks of the calls that this worker makes."""
    redis = await stack.enter_async_context(Proxy("127.0.0.1", world.redis.port))
    changes = {
        "AGENTFLOW_PUBLIC_URL": public_url,
        "AGENTFLOW_REDIS_URL": _by(redis, world.redis.url()),
    }
    postgres = None
    if not name.startswith("worker"):
        postgres = await stack.enter_async_context(Proxy("127.0.0.1", world.postgres.port))
        changes["AGENTFLOW_DATABASE_URL"] = _by(postgres, world.database_url)
    if port:
        changes["AGENTFLOW_PORT"] = str(port)
    settings = {**world.environment(), **changes}
    if postgres is None:
        del settings["AGENTFLOW_DATABASE_URL"]
    return Role(name, world.folder, settings, redis, postgres)


def _by(proxy: Proxy, url: str) -> str:
    """The URL by way of the proxy."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    place = f"127.0.0.1:{proxy.port}"
    return urlunsplit(parts._replace(netloc=f"{login}@{place}" if login else place))
