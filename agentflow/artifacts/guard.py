"""An HTTP client for URLs that others chose, which reaches public addresses only.

The host is resolved once, every address is judged before the first connect, and the connection
goes to a judged address, so that a second DNS answer cannot lead elsewhere. TLS still checks the
host's name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeAlias

import httpcore
import httpx

from agentflow.artifacts.addresses import Address, Allowed, canonical, is_disguised, literal
from agentflow.artifacts.errors import AddressRefused

Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host's name and port to its addresses; raises `OSError` when there are none."""


def guarded_client(
    allow: Collection[str] = (),
    timeout: float | httpx.Timeout = 30.0,
    *,
    resolver: Resolver | None = None,
    verify: ssl.SSLContext | None = None,
) -> httpx.AsyncClient:
    """A client without proxies, redirects, cookies or credentials, for public addresses.

    `allow` lists what else may be reached (`Allowed.of`); `timeout` is in seconds. Requests raise
    `AddressRefused`, before any connect, and `httpx.TransportError`.
    """
    context = verify or _public_authorities()
    backend = GuardedBackend(Allowed.of(allow), resolver or resolve)
    return httpx.AsyncClient(
        transport=GuardedTransport(backend, context),
        timeout=timeout,
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


@cache  # reading the certificates takes longer than all else at start
def _public_authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The system's answer, without repetitions."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to public and allowed addresses; raises `AddressRefused` for others."""

    def __init__(
        self,
        allowed: Allowed,
        resolver: Resolver = resolve,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allowed, self._resolver = allowed, resolver
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Try the addresses in turn; `timeout` (seconds) covers the resolution and all of them."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self.addresses(host, port)
                share = timeout and timeout / len(addresses)
                failure: Exception | None = None
                for address in addresses:
                    try:
                        return await self._inner.connect_tcp(
                            str(address), port, share, local_address, socket_options
                        )
                    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                        failure = failure or error
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host} did not answer in {timeout} s") from error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("A socket of this machine is not a public address.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def addresses(self, host: str, port: int) -> Sequence[Address]:
        """The host's addresses, one or more, each of which may be reached.

        Raises `AddressRefused` if any may not, `httpcore.ConnectError` if there are none.
        """
        trusted = self._allowed.host(host, port)
        address = literal(canonical(host))
        if not 0 < port < 65536:
            raise AddressRefused(f"{port} is not a port.")
        if is_disguised(host) and not trusted:
            raise AddressRefused(f"{host} is an address in disguise.")
        found = [address] if address else await self._lookup(host, port)
        if trusted or all(map(self._allowed.address, found)):
            return found
        raise AddressRefused(f"{host} has an address that is not public.")

    async def _lookup(self, host: str, port: int) -> Sequence[Address]:
        try:
            found = [ipaddress.ip_address(text) for text in await self._resolver(host, port)]
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address: {error}") from error
        if not found:
            raise httpcore.ConnectError(f"{host} has no address")
        return found


class GuardedTransport(httpx.AsyncBaseTransport):
    """An `httpx` transport over a guarded pool, made of public names only."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend, verify: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        sent = httpcore.Request(
            request.method,
            url,
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx():
            response = await self._pool.handle_async_request(sent)
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    """The bytes of a response, with errors as `httpx` names them."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, AsyncIterable)
        with _as_httpx():
            async for part in self._response.stream:
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


_HTTPCORE_ERRORS = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise an error of `httpcore` as the one of the same name in `httpx`."""
    try:
        yield
    except _HTTPCORE_ERRORS as error:
        named = getattr(httpx, type(error).__name__, httpx.TransportError)
        raise named(str(error)) from error
