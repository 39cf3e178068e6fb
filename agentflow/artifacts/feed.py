"""Bytes handed from who reads them to who sends them, at the pace of the slower."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

WAITING = 4
"""Chunks between the two."""


class Withdrawn(Exception):
    """The giver failed: what was taken so far is not the whole."""


class Feed:
    """An asynchronous iterable for one taker. It ends when the giver says `end`, and raises
    `Withdrawn` once the giver says `withdraw`."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        self._withdrawn = self._left = False

    async def give(self, chunk: bytes) -> bool:
        """Wait until there is room. False: the taker has gone."""
        if not self._left:
            await self._queue.put(chunk)
        return not self._left

    async def end(self) -> None:
        """That was all."""
        if not self._left:
            await self._queue.put(None)

    def withdraw(self) -> None:
        """The taker is not to get more, and is to know that it has not got all."""
        self._withdrawn = True
        self._empty()
        self._queue.put_nowait(None)

    def leave(self) -> None:
        """The taker takes no more; whoever waits to give goes on."""
        self._left = True
        self._empty()

    def _empty(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._queue.get()) is not None:
            yield chunk
        if self._withdrawn:
            raise Withdrawn
