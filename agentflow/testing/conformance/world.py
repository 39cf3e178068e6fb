"""The whole application, embedded, with the plugin and its simulator: real HTTP on loopback."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import uvicorn
from tortoise.connection import get_connection

from agentflow.app import AgentFlow, standalone
from agentflow.core.providers import Delivery, Provider
from agentflow.plugins.catalogue import Ready
from agentflow.settings import Settings
from agentflow.store.sql import Sql
from agentflow.testing.conformance.loop import until
from agentflow.testing.conformance.order import HERE
from agentflow.testing.seeding import seed
from agentflow.testing.serving import served
from agentflow.testing.simulated import environment
from agentflow.testing.simulator import HOST, Simulator
from agentflow.types import JobId, Json, JsonObject, new_id
from agentflow.webhooks.reading import delivery_of
from agentflow.worker.files import artifact_key

_NOBODYS = "AGENTFLOW_OF_NOBODY_"
"""Variables with this prefix do not exist."""

HASTY: Mapping[str, Any] = {
    "poll_after": 0.1,
    "poll_max": 0.3,
    "poll_after_webhook": 20.0,
    "backoff": 0.05,
    "unknown_checks": 1,
}
"""Policies for tests: an expected webhook is waited for, all else happens at once."""


@asynccontextmanager
async def world(
    provided: Callable[[], Provider],
    sim: Simulator,
    *,
    webhooks: bool = True,
    variables: Mapping[str, str] | None = None,
    **policy: Any,
) -> AsyncIterator[World]:
    """Serve both; `provided` is asked with the variables in force that lead to the simulator.
    `webhooks=False` is a server without a public URL. `variables` change the
    plugin's environment, `policy` the policies of its tasks."""
    with (
        tempfile.TemporaryDirectory(prefix="agentflow-conformance-") as folder,
        socket.create_server((HOST, 0)) as listener,
    ):
        port: int = listener.getsockname()[1]
        url = f"http://{HOST}:{port}"
        async with sim.serve():
            with environment({**sim.env(), **(variables or {})}):
                provider = provided()
                if provider.webhooks == "account" and webhooks:
                    sim.webhook_url = f"{url}/webhooks/{provider.name}"
                app = AgentFlow(
                    providers=[provider],
                    plugins=[],
                    policies={name: {**HASTY, **policy} for name in provider.tasks},
                    settings=_settings(Path(folder), port, url if webhooks else None, sim),
                )
                await seed(Path(folder))
                async with (
                    served(_config(app), listener),
                    httpx.AsyncClient(base_url=url, timeout=30.0) as http,
                ):
                    yield World(app, sim, http, provider, Path(folder))


class World:
    """What the checks do in it, by the HTTP API wherever that is possible."""

    def __init__(
        self,
        app: AgentFlow,
        sim: Simulator,
        http: httpx.AsyncClient,
        provider: Provider,
        folder: Path,
    ) -> None:
        self.app, self.sim, self.http, self.provider = app, sim, http, provider
        self.folder = folder

    @property
    def ready(self) -> Ready:
        return self.app.runtime.catalogue.provider(self.provider.name)

    async def submit(self, task: str, input: Json) -> str:
        """The id of the job. Bytes in the input become files in custody."""
        body = {"task": f"{self.provider.name}.{task}", "input": await self.with_files(input)}
        answer = await self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 201, f"the order {input} of {task} is refused: {answer.text}"
        id: str = answer.json()["id"]
        return id

    async def end(self, id: str, seconds: float = 15.0) -> JsonObject:
        """The job once it is final."""
        wanted = "succeeded", "failed", "canceled", "expired"
        return await self.until(id, *wanted, seconds=seconds)

    async def run(self, task: str, input: Json) -> JsonObject:
        return await self.end(await self.submit(task, input))

    async def job(self, id: str) -> JsonObject:
        found: JsonObject = (await self.http.get(f"/v1/jobs/{id}")).json()
        return found

    async def until(self, id: str, *statuses: str, seconds: float = 10.0) -> JsonObject:
        """The job once it has one of these statuses."""
        return await until(
            lambda: self.job(id),
            lambda job: job["status"] in statuses,
            seconds,
            f"the job {id} is not {' or '.join(statuses)}",
        )

    async def history(self, id: str) -> list[JsonObject]:
        found: list[JsonObject] = (await self.http.get(f"/v1/jobs/{id}/events")).json()["items"]
        return found

    async def deliver(
        self, body: bytes, headers: Mapping[str, str], token: str | None = None
    ) -> httpx.Response:
        """A webhook as the provider would send it."""
        tail = f"/{token}" if token else ""
        raw = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers.items()]
        return await self.http.post(
            f"/webhooks/{self.provider.name}{tail}", content=body, headers=raw
        )

    async def deliveries(self) -> list[Delivery]:
        """Every webhook that was taken, as the parser is given it, oldest first."""
        return [delivery_of(row) for row in await self.inbox()]

    async def inbox(self) -> list[JsonObject]:
        await self.app.runtime.writer.settled()
        sql = Sql(get_connection("default"))
        return await sql.rows(
            'SELECT * FROM "agentflow_inbox" WHERE "kind" = \'webhook\' ORDER BY "id"', []
        )

    async def heard(self, count: int, seconds: float = 10.0) -> None:
        """Until so many webhooks were taken and read."""
        what = f"fewer than {count} webhooks came"
        await until(self.inbox, lambda rows: len(rows) >= count, seconds, what)

    async def with_files(self, input: Any) -> Any:
        """The input with the id of a file in custody for every `bytes` in it."""
        match input:
            case str():
                return input.replace(HERE, self.sim.url)
            case bytes():
                job = JobId(new_id("job"))
                store = self.app.runtime.artifacts
                await store.put(artifact_key(job, 0), _once(input), max_bytes=1 << 30)
                return f"art_{job.removeprefix('job_')}_0"
            case dict():
                return {name: await self.with_files(value) for name, value in input.items()}
            case list():
                return [await self.with_files(value) for value in input]
            case _:
                return input


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _settings(folder: Path, port: int, public_url: str | None, sim: Simulator) -> Settings:
    values: dict[str, Any] = {"data_dir": folder, "port": port, "public_url": public_url}
    values |= {"grace": 0.2, "synchronous": "NORMAL"}
    values["allow_downloads"] = frozenset({urlsplit(sim.url).netloc})
    return Settings(_env_prefix=_NOBODYS, **values)  # type: ignore[call-arg]  # of pydantic-settings


def _config(app: AgentFlow) -> uvicorn.Config:
    config = uvicorn.Config(standalone(app), log_config=None, ws="none", lifespan="on")
    # Said to the constructor, it would silence the access log of every server in the process.
    config.access_log = False
    return config


def dumped(value: Any) -> str:
    """Anything of ours as text, to compare or to search."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str).decode()
