"""Requests to the API: sent again where that is safe, with errors as the client names them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

import httpx

from agentflow.client.answers import read, refused
from agentflow.client.errors import ApiError, ServerUnreachable
from agentflow.client.retries import Limits, Tries
from agentflow.client.routes import Request
from agentflow.client.sse import Message, Parser
from agentflow.client.transport import Opened, Transport

SILENCE = 45.0
"""A live stream that says nothing for so many seconds, not even its ping, is dead."""

SETTLED = 5.0
"""A live stream that still says something after so many seconds is progress."""

GRACE = 5.0
"""Seconds a server may be late with an answer that somebody waits for until a given time."""

RECONNECTS = 4
"""A live stream is taken up again so often at least, whatever the client's `repeats`."""


class Wire:
    """`timeout` is in seconds, for one request. Raises `ApiError` and `ServerUnreachable`."""

    def __init__(self, url: str, io: Transport, timeout: float, limits: Limits) -> None:
        self.url, self._io, self._timeout = url.rstrip("/"), io, timeout
        self._limits = limits
        times = None if limits.times is None else max(limits.times, RECONNECTS)
        self._stream_limits = Limits(limits.seconds, times)

    async def close(self) -> None:
        await self._io.close()

    async def sleep(self, seconds: float) -> None:
        await self._io.sleep(seconds)

    async def ask(self, request: Request, until: float = float("inf")) -> dict[str, Any]:
        """The JSON of the answer. No try begins after the instant `until` of the monotonic
        clock, and none lasts much longer."""
        tries = Tries(self._limits, until)
        while True:
            try:
                return read(await self._send(request, until), request.passing)
            except (httpx.TransportError, ApiError) as error:
                await self._again(tries, error, request.repeatable)

    async def all(self, requests: Iterable[Request]) -> list[dict[str, Any]]:
        """The answers, one after the other."""
        return [await self.ask(request) for request in requests]

    async def items(
        self, request: Request, cursor: str = "cursor"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The items of a list, page after page, as they are used."""
        at: str | None = None
        while True:
            params = {**request.params, cursor: at} if at else request.params
            page = await self.ask(Request("GET", request.path, params))
            for item in page["items"]:
                yield item
            at = page.get("next_cursor")
            if at is None:
                return

    async def live(
        self, request: Request, cursor: str | None = None
    ) -> AsyncGenerator[Message, None]:
        """Messages behind `cursor`, over any break, until the server answers 204."""
        tries = Tries(self._stream_limits)
        while True:
            try:
                async with self._listen(request, cursor) as (answer, chunk):
                    if answer.status_code == 204:
                        return
                    _check_live(answer)
                    opened, parser = time.monotonic(), Parser()
                    while said := await chunk():
                        if time.monotonic() - opened > SETTLED:
                            tries.renew()
                        for message in parser.feed(said):
                            tries.renew()
                            yield message
                        cursor = parser.last_id or cursor
                raise httpx.ReadError("the live stream ended early")
            except (httpx.TransportError, ApiError) as error:
                await self._again(tries, error)

    async def download(self, request: Request, to: Path) -> Path:
        """Write the bytes to `to`, whole or not at all."""
        draft = to.with_name(f".{to.name}.part")
        tries = Tries(self._limits)
        try:
            while True:
                try:
                    await self._copy(request, draft)
                    return draft.replace(to)
                except (httpx.TransportError, ApiError) as error:
                    await self._again(tries, error)
        finally:
            draft.unlink(missing_ok=True)

    async def _copy(self, request: Request, to: Path) -> None:
        self._open()
        async with self._io.stream(request.method, self.url + request.path) as (answer, chunk):
            if not answer.is_success:
                raise refused(answer)
            with to.open("wb") as file:
                while said := await chunk():
                    file.write(said)

    async def _send(self, request: Request, until: float) -> httpx.Response:
        self._open()
        patience = self._timeout if until == float("inf") else min(self._timeout, GRACE)
        return await self._io.send(
            request.method,
            self.url + request.path,
            params=request.params,
            headers=request.headers,
            content=request.body,
            timeout=httpx.Timeout(patience, read=patience + request.wait),
        )

    def _listen(self, request: Request, cursor: str | None) -> Opened:
        self._open()
        seen = {} if cursor is None else {"Last-Event-ID": cursor}
        return self._io.stream(
            request.method,
            self.url + request.path,
            params=request.params,
            headers={**request.headers, **seen},
            timeout=httpx.Timeout(self._timeout, read=SILENCE),
        )

    async def _again(self, tries: Tries, error: Exception, repeatable: bool = True) -> None:
        """Wait for the next try, or raise the error if there is to be none."""
        pause = tries.pause(error, repeatable)
        if pause is not None:
            await self._io.sleep(pause)
        elif isinstance(error, httpx.TransportError):
            said = str(error) or type(error).__name__
            raise ServerUnreachable(f"{self.url}: {said}") from error
        else:
            raise error

    def _open(self) -> None:
        """Said as the other errors are: another thread may have closed the client meanwhile."""
        if self._io.closed:
            raise ServerUnreachable(f"The client of {self.url} is closed")


def _check_live(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise refused(answer)
    if "text/event-stream" not in answer.headers.get("content-type", ""):
        raise ServerUnreachable(f"{answer.request.url} gives no live stream")
