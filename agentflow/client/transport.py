"""The two ways to wait: httpx blocking and httpx asynchronous, behind one interface.

What the client does over several requests is written once, as coroutines. Over `Blocking` they
never suspend, so that `finish` and `walk` run them to their end without an event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeAlias, TypeVar

import httpx

T = TypeVar("T")

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})

Chunk: TypeAlias = Callable[[], Awaitable[bytes]]
"""The next bytes of an open answer; none at its end."""

Opened: TypeAlias = AbstractAsyncContextManager[tuple[httpx.Response, Chunk]]


class Transport(Protocol):
    """Arguments are those of `httpx.Client.request`. Raises `httpx.TransportError`."""

    @property
    def closed(self) -> bool: ...

    async def send(self, method: str, url: str, **more: Any) -> httpx.Response: ...

    def stream(self, method: str, url: str, **more: Any) -> Opened:
        """The answer before its body is read; that of a bad one is read."""

    async def sleep(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


class Blocking:
    def __init__(self, **options: Any) -> None:
        self._http = httpx.Client(**options)

    @property
    def closed(self) -> bool:
        return self._http.is_closed

    async def send(self, method: str, url: str, **more: Any) -> httpx.Response:
        return self._http.request(method, url, **more)

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, **more: Any
    ) -> AsyncIterator[tuple[httpx.Response, Chunk]]:
        with self._http.stream(method, url, **more) as answer:
            if not answer.is_success:
                answer.read()
            chunks = answer.iter_bytes()

            async def chunk() -> bytes:
                return next(chunks, b"")

            yield answer, chunk

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - nobody else runs here

    async def close(self) -> None:
        self._http.close()


class Asynchronous:
    def __init__(self, **options: Any) -> None:
        self._http = httpx.AsyncClient(**options)

    @property
    def closed(self) -> bool:
        return self._http.is_closed

    async def send(self, method: str, url: str, **more: Any) -> httpx.Response:
        return await self._http.request(method, url, **more)

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, **more: Any
    ) -> AsyncIterator[tuple[httpx.Response, Chunk]]:
        async with self._http.stream(method, url, **more) as answer:
            if not answer.is_success:
                await answer.aread()
            chunks = answer.aiter_bytes()

            async def chunk() -> bytes:
                return await anext(chunks, b"")

            yield answer, chunk

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self._http.aclose()


def options(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """What either of httpx's clients is made with. Raises `ValueError` for what is no URL."""
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"{url!r} is no address of a server: http://host:port")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # A proxy of the environment has no business between us and this very machine.
    return {"headers": headers, "timeout": timeout, "trust_env": parts.host not in _LOCAL}


def finish(flow: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never suspends."""
    try:
        flow.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    flow.close()
    raise TypeError("a blocking client cannot await: use AsyncClient")


def walk(flow: AsyncGenerator[T, None]) -> Iterator[T]:
    """What an asynchronous generator yields that never suspends."""
    try:
        while True:
            try:
                item = finish(_next(flow))
            except StopAsyncIteration:
                return
            yield item
    finally:
        finish(flow.aclose())


async def _next(flow: AsyncGenerator[T, None]) -> T:
    return await anext(flow)
