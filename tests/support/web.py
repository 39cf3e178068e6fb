"""An application behind real HTTP on loopback, with providers that do what the input says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from agentflow import (
    Accepted,
    AgentFlow,
    Artifact,
    Call,
    Delivery,
    Fact,
    Failed,
    InvalidInput,
    Progressed,
    Provider,
    ProviderError,
    Result,
    Settings,
    StandardWebhooks,
    Succeeded,
)
from agentflow.app import standalone
from agentflow.core.providers import Verified, WebhookFamily
from agentflow.store.sql import Sql
from agentflow.testing.serving import served
from agentflow.types import utcnow
from agentflow.webhooks.signatures import new_secret, sign
from support.contract import Contract
from support.patience import PATIENCE

KEY = new_secret()
MAX_WAIT = 1.5


class Keys(BaseModel):
    webhook_secret: SecretStr = SecretStr(KEY)


class NoKeys(BaseModel):
    webhook_secret: SecretStr | None = None


class WeakKeys(BaseModel):
    webhook_secret: SecretStr = SecretStr("whsec_MTIz")


class Draw(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    times: int = Field(1, ge=1, le=10)


class File(BaseModel):
    url: str
    name: str | None = None
    media_type: str | None = None


class Rude:
    """A scheme that breaks its contract: it raises what it likes."""

    def verifier(self, settings: Any) -> Rude:
        return self

    def check(self) -> None: ...

    def verify(self, headers: Any, body: bytes, now: Any) -> Verified:
        raise KeyError("x-signature")


class Fakes:
    """`acme` signs per request, `bank` per account; `draw` and `pay` wait for `gates[name]`."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []
        self.broken_parser = False

    def all(self) -> list[Provider]:
        scheme = StandardWebhooks(secret="webhook_secret")
        keyless = [
            Provider("unset", settings=NoKeys, webhooks="per_request", scheme=scheme),
            Provider("weak", settings=WeakKeys, webhooks="account", scheme=scheme),
        ]
        tiny = self._provider("tiny", "account", max_body=1000)
        rude = Provider("rude", webhooks="account", scheme=Rude())
        return [
            self._provider("acme", "per_request"),
            self._provider("bank", "account"),
            *keyless,
            tiny,
            rude,
            Provider("mute"),
        ]

    def _provider(self, name: str, family: WebhookFamily, **options: Any) -> Provider:
        provider = Provider(
            name,
            settings=Keys,
            webhooks=family,
            scheme=StandardWebhooks(secret="webhook_secret"),
            **options,
        )
        provider.task("draw", input=Draw)(self._draw)
        provider.task("echo")(_echo)
        provider.task("file", input=File)(_file)
        provider.task("refuse")(_refuse)
        provider.parse(self._parse)
        return provider

    async def _draw(self, call: Call, input: Draw) -> Accepted:
        """Draw something, some day."""
        self.calls.append(input.name)
        if input.name in self.gates:
            await self.gates[input.name].wait()
        return Accepted(input.name)

    def _parse(self, delivery: Delivery) -> list[Fact]:
        if self.broken_parser:
            raise RuntimeError("the parser is broken today")
        said = delivery.json
        return [_fact(each) for each in (said if isinstance(said, list) else [said])]


def _fact(said: Any) -> Fact:
    match said["status"]:
        case "done":
            return Fact(Succeeded(Result(output=said.get("output"))), said.get("id"))
        case "error":
            return Fact(Failed(ProviderError(said["message"])), said.get("id"))
        case _:
            return Fact(Progressed(said.get("fraction"), said.get("message")), said.get("id"))


async def _echo(call: Call, input: Any) -> Any:
    """Say it again."""
    return input


async def _file(call: Call, input: File) -> Result:
    made = Artifact(input.url, name=input.name, media_type=input.media_type)
    return Result(artifacts=[made])


async def _refuse(call: Call, input: Any) -> None:
    raise InvalidInput("acme does not want this")


@dataclass
class World:
    """`http` holds every answer against the document; `plain` does not, for odd requests."""

    url: str
    http: httpx.AsyncClient
    plain: httpx.AsyncClient
    app: AgentFlow
    fakes: Fakes
    contract: Contract
    server: uvicorn.Server
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def name(self, what: str = "ext") -> str:
        """One that no test used before."""
        return f"{what}-{next(self.numbers)}"

    async def submit(self, task: str = "acme.draw", input: Any = None, **more: Any) -> Any:
        """The job as answered with 201."""
        if input is None and task.endswith(".draw"):
            input = {"name": self.name()}
        answer = await self.http.post("/v1/jobs", json={"task": task, "input": input, **more})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def job(self, id: str) -> Any:
        answer = await self.http.get(f"/v1/jobs/{id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, id: str, *statuses: str) -> Any:
        """The job once it has one of these statuses."""
        async with asyncio.timeout(PATIENCE):
            while (job := await self.job(id))["status"] not in statuses:
                await asyncio.sleep(0.005)
        return job

    async def waiting(self, **more: Any) -> Any:
        """A job that waits for its webhook."""
        return await self.until((await self.submit(**more))["id"], "waiting")

    async def finished(self, task: str = "acme.echo", input: Any = None) -> Any:
        job = await self.submit(task, input)
        return await self.until(job["id"], "succeeded", "failed")

    async def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        from tortoise.connection import get_connection

        return await Sql(get_connection("default")).rows(query, values)

    async def token(self, job: str) -> str:
        query = f'SELECT "token" FROM "agentflow_attempts" WHERE "job_id" = \'{job}\''
        found: str = (await self.rows(query))[0]["token"]
        return found

    async def count(self, table: str) -> int:
        found: int = (await self.rows(f'SELECT COUNT(*) AS "n" FROM "{table}"'))[0]["n"]
        return found

    async def deliver(
        self, path: str, said: Any, *, id: str | None = None, key: str = KEY, **options: Any
    ) -> httpx.Response:
        """A signed webhook; `said` is the body, as bytes or what JSON is made of."""
        body = said if isinstance(said, bytes) else orjson.dumps(said)
        headers = sign(key, id or self.name("msg"), utcnow(), body)
        headers |= options.pop("headers", {})
        return await self.http.post(f"/webhooks/{path}", content=body, headers=headers, **options)

    async def read(self, delivery: str) -> Any:
        """The delivery once the writer has read it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = await self.http.get(f"/v1/deliveries/{delivery}")
                assert answer.status_code == 200, answer.text
                if answer.json()["status"] != "received":
                    return answer.json()
                await asyncio.sleep(0.005)

    async def raw(
        self, request: bytes, until: bytes | None = None, seconds: float = PATIENCE
    ) -> bytes:
        """What the server answers to these very bytes, up to `until` or the end."""
        port = self.server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            async with asyncio.timeout(seconds):
                return await (reader.read() if until is None else reader.readuntil(until))
        finally:
            writer.close()


@asynccontextmanager
async def serving(asgi: Any, **options: Any) -> AsyncIterator[uvicorn.Server]:
    """In this loop on a free port, stopped as SIGTERM stops it."""
    config = uvicorn.Config(asgi, port=0, log_config=None, ws="none", lifespan="on", **options)
    config.access_log = False
    async with served(config, signals=True) as server:
        yield server


def url_of(server: uvicorn.Server) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@asynccontextmanager
async def world(
    data: Path, *, app: AgentFlow | None = None, **options: Any
) -> AsyncIterator[World]:
    fakes = Fakes()
    settings = {
        "data_dir": data, "public_url": "http://127.0.0.1:1", "grace": 0.2, "max_wait": MAX_WAIT,
        "synchronous": "NORMAL",
    }  # fmt: skip
    app = app or AgentFlow(providers=fakes.all(), plugins=[])
    app._settings = Settings(**(settings | options))
    async with serving(standalone(app)) as server:
        url = url_of(server)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as plain:
            contract = Contract((await plain.get("/openapi.json")).json())
            hooks = {"response": [contract.check]}
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, event_hooks=hooks) as http:
                yield World(url, http, plain, app, fakes, contract, server)
        for gate in fakes.gates.values():
            gate.set()
