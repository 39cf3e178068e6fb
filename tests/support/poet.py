"""A provider that says what the test tells it to while its call runs, and who listens to it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
from pydantic import BaseModel

from agentflow import Call, Policy, Provider, Result
from agentflow.client.sse import Message, Parser
from support.patience import PATIENCE


class Poem(BaseModel):
    name: str
    aloud: bool = True


class Poet:
    """`poet.recite` takes its lines from `lines[name]`: text, `(channel, text)`, an exception to
    raise, or None for the end. Its result is all that was text."""

    def __init__(self) -> None:
        self.lines: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self.provider = Provider("poet", webhooks="none")
        policy = Policy(backoff=0.05, backoff_max=0.1)
        self.provider.task("recite", input=Poem, policy=policy)(self._recite)
        self.provider.task("shout", input=Poem, policy=policy)(self._shout)

    def tell(self, name: str, *lines: Any) -> None:
        for line in lines:
            self.lines[name].put_nowait(line)

    async def _recite(self, call: Call, input: Poem) -> Result:
        whole = ""
        while (line := await self.lines[input.name].get()) is not None:
            if isinstance(line, Exception):
                raise line
            channel, text = line if isinstance(line, tuple) else ("text", line)
            whole += text if channel == "text" else ""
            if input.aloud:
                call.stream(text, channel)
        return Result(text=whole)

    def _shout(self, call: Call, input: Poem) -> Result:
        """From a thread."""
        for n in range(1000):
            call.stream(f"{n}! ")
        return Result(text="".join(f"{n}! " for n in range(1000)))


class Heard:
    """What one client heard of one job: `text` by attempt and channel, `_` for what is missing."""

    def __init__(self) -> None:
        self.text: dict[tuple[int, str], str] = defaultdict(str)
        self.gaps: list[dict[str, Any]] = []
        self.history: list[int] = []
        self.order: list[str] = []
        self.last_id: str | None = None

    def take(self, message: Message) -> None:
        said = orjson.loads(message.data)
        self.last_id = message.id
        self.order.append(message.event)
        if message.event == "gap":
            self.gaps.append(said)
        elif message.event == "delta":
            key = (said["attempt"], said["channel"])
            before = self.text[key]
            assert said["offset"] >= len(before), "nothing comes twice"
            self.text[key] = before + "_" * (said["offset"] - len(before)) + said["text"]
        else:
            assert message.id == str(said["seq"])
            self.history.append(said["seq"])


@asynccontextmanager
async def listening(
    http: httpx.AsyncClient, job: str, heard: Heard | None = None, query: str = "", **headers: str
) -> AsyncIterator[AsyncIterator[Heard]]:
    """Iterated, it gives what was heard so far after each message and each chunk. It goes on where
    `heard` was."""
    heard = heard or Heard()
    if heard.last_id is not None:
        headers["Last-Event-ID"] = heard.last_id
    headers["Accept"] = "text/event-stream"
    path = f"/v1/jobs/{job}/events{query}"
    async with http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()

        async def messages() -> AsyncIterator[Heard]:
            parser = Parser()
            async for chunk in answer.aiter_bytes():
                for message in parser.feed(chunk):
                    heard.take(message)
                    yield heard
                heard.last_id = parser.last_id or heard.last_id
                yield heard

        yield messages()


async def hear(
    http: httpx.AsyncClient, job: str, heard: Heard | None = None, query: str = "", **more: str
) -> Heard:
    """All of it, to the end of the job."""
    heard = heard or Heard()
    async with asyncio.timeout(PATIENCE), listening(http, job, heard, query, **more) as messages:
        async for _ in messages:
            pass
    return heard
