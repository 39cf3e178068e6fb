"""POST requests to this machine, at a tenth of the processor time of a full HTTP client.

A simulated provider sends several webhooks per job, in the same process as the code under test and
its benchmark: what they cost must not be what is measured.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeAlias
from urllib.parse import urlsplit

Connection: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Poster:
    """Keeps connections alive, `most` of them; each request ends within `timeout` seconds."""

    def __init__(self, timeout: float = 10.0, most: int = 64) -> None:
        self.timeout = timeout
        self._turns = asyncio.Semaphore(most)
        self._idle: defaultdict[tuple[str, int], list[Connection]] = defaultdict(list)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer. Raises `OSError` if there is none (a timeout is one)."""
        parts = urlsplit(url)
        place = (parts.hostname or "", parts.port or 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"POST {target} HTTP/1.1", f"host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"content-length: {len(body)}", "", ""]
        try:
            request = "\r\n".join(lines).encode("ascii") + body
            async with self._turns, asyncio.timeout(self.timeout):
                return await self._exchange(place, request)
        except (EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise ConnectionError(f"no HTTP answer: {error}") from error

    async def _exchange(self, place: tuple[str, int], request: bytes) -> int:
        while idle := self._idle[place]:
            kept = idle.pop()
            if not kept[0].at_eof():
                with suppress(OSError, EOFError):  # closed just now, as kept ones are
                    return await self._ask(place, kept, request)
            kept[1].close()
        return await self._ask(place, await asyncio.open_connection(*place), request)

    async def _ask(self, place: tuple[str, int], connection: Connection, request: bytes) -> int:
        reader, writer = connection
        keep = False
        try:
            writer.write(request)
            status, keep = await _answer(reader)
        finally:
            if keep:
                self._idle[place].append(connection)
            else:
                writer.close()
        return status

    async def aclose(self) -> None:
        for idle in self._idle.values():
            for _, writer in idle:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
        self._idle.clear()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the connection can be used again: the end of the body is known."""
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    headers = {name: value.strip() for name, _, value in (line.partition(b":") for line in rest)}
    length = headers.get(b"content-length")
    if length is not None:
        await reader.readexactly(int(length))
    status = int(first.partition(b" ")[2][:3])
    return status, length is not None and headers.get(b"connection") != b"close"
