"""One request on the wire: to an address that was looked at, no redirect, a bounded answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from agentflow import (
    CallTimeout,
    InvalidInput,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    ProviderFailure,
    Unavailable,
    Unstorable,
)
from agentflow_http.asking import Ask, pairs

CONNECT = 10.0
AGENT = "agentflow"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "")


async def send(
    ask: Ask,
    headers: Mapping[str, str],
    query: Mapping[str, str],
    *,
    allow: Collection[str],
    most: int,
    timeout: float,
    unsure: bool,
) -> Answer:
    """The answer, whatever its status. `headers` and `query` are added to what is asked; `allow`
    says what may be reached besides public addresses; `most` bounds the body, in bytes.

    Raises `ProviderFailure` alone: `OutcomeUnknown` if the request may have left and `unsure`
    says that this matters.
    """
    import httpx

    from agentflow import AddressRefused, guarded_client  # they load httpx

    every = {"accept": "*/*", "user-agent": AGENT}
    every |= {"content-type": ask.type} if ask.type else {}
    every |= {name.lower(): value for name, value in ask.headers.items()} | dict(headers)
    try:
        url = httpx.URL(ask.url)
        if more := pairs({**ask.query, **query}):
            url = url.copy_merge_params(httpx.QueryParams(urlencode(more)))
        limits = httpx.Timeout(timeout, connect=min(CONNECT, timeout))
        async with (
            asyncio.timeout(timeout),
            guarded_client(allow, limits) as client,
            client.stream(ask.method, url, headers=every, content=ask.body) as response,
        ):
            return Answer(response.status_code, response.headers, await _body(response, most))
    except AddressRefused as refused:
        raise PermissionRefused(refused.message) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
        raise InvalidInput(f"This cannot be sent: {error}") from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise Unavailable(f"Cannot connect: {error}") from None
    except (TimeoutError, httpx.TimeoutException):
        raise _lost(f"No answer within {timeout:g} seconds", unsure, CallTimeout) from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise _lost(f"{type(error).__name__}: {error}", unsure, Unavailable) from None


def _lost(said: str, unsure: bool, sure: type[ProviderFailure]) -> ProviderFailure:
    return OutcomeUnknown(said) if unsure else sure(said)


async def _body(response: Any, most: int) -> bytes:
    """Raises `Unstorable` if a success, `ProviderError` if an error has more than `most` bytes."""
    whole = bytearray()
    async for chunk in response.aiter_bytes():
        whole += chunk
        if len(whole) > most:
            said = f"HTTP {response.status_code}, and more than {most} bytes"
            raise Unstorable(said) if response.is_success else ProviderError(said)
    return bytes(whole)
