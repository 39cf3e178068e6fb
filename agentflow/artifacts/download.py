"""Read a file from an HTTP server that is not trusted: which URL, which answer, how many bytes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from agentflow.artifacts.addresses import ascii_host
from agentflow.artifacts.errors import SourceGone, SourceRefused, SourceUnavailable
from agentflow.artifacts.media import HEAD
from agentflow.errors import SettingsError

_GONE = {403, 404, 410}
_LATER = {202, 408, 425, 429}
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "agentflow"}


def checked_url(text: str, allowed_hosts: Collection[str] | None) -> httpx.URL:
    """The URL if it is http(s), without credentials, to an allowed host; else `SourceRefused`.

    `allowed_hosts` is as in `collect`; a pattern that cannot be one raises `SettingsError`.
    """
    try:
        url = httpx.URL(text)
        host = ascii_host(url.raw_host.decode("ascii"))
    except (httpx.InvalidURL, ValueError) as error:
        raise SourceRefused("The source is not a URL of a file.") from error
    if url.scheme not in ("http", "https"):
        raise SourceRefused(f"A file is fetched by http or https, not {url.scheme!r}.")
    if url.userinfo:
        raise SourceRefused("The URL carries credentials.")
    if allowed_hosts is not None and not any(_fits(host, each) for each in allowed_hosts):
        raise SourceRefused(f"{host} is not a host that files of this provider come from.")
    return url


class Download:
    """One GET. While its chunks are read: `size` and `head`, the first bytes; `declared` type."""

    def __init__(self, url: httpx.URL, max_bytes: int) -> None:
        self._url, self._max_bytes = url, max_bytes
        self._host = url.raw_host.decode("ascii")
        self.declared: str | None = None
        self.head = b""
        self.size = 0

    @asynccontextmanager
    async def chunks(
        self, client: httpx.AsyncClient, idle_timeout: float
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """The body as it is sent, never decoded: a compressed one stays small.

        Nothing of the client but its transport is used. Raises as `collect` does, the chunks too.
        """
        timeout = httpx.Timeout(idle_timeout).as_dict()
        request = httpx.Request("GET", self._url, headers=_HEADERS, extensions={"timeout": timeout})
        with _as_unavailable(self._host):
            response = await client.send(request, stream=True, auth=None, follow_redirects=False)
        try:
            length = self._accept(response)
            async with aclosing(self._body(response, length)) as body:
                yield body
        finally:
            await response.aclose()

    def _accept(self, response: httpx.Response) -> int | None:
        """Judge the answer before its body; returns the length it announces, if it does."""
        status, host = response.status_code, self._host
        if status in _GONE:
            raise SourceGone(f"{host} no longer has the file (HTTP {status}).")
        if status in _LATER or status >= 500:
            wait = _seconds(response.headers.get("retry-after"))
            raise SourceUnavailable(f"{host} answered HTTP {status}.", retry_after=wait)
        if response.is_redirect:
            raise SourceRefused(f"{host} redirects (HTTP {status}), which is not followed.")
        if status != 200:
            raise SourceRefused(f"{host} answered HTTP {status}.")
        length = _number(response.headers.get("content-length"))
        if length is not None and length > self._max_bytes:
            raise self._too_large()
        if response.headers.get("content-encoding", "identity").lower() == "identity":
            self.declared = response.headers.get("content-type")
        return length

    async def _body(
        self, response: httpx.Response, length: int | None
    ) -> AsyncGenerator[bytes, None]:
        with _as_unavailable(self._host):
            async for chunk in response.aiter_raw():
                self.size += len(chunk)
                if self.size > self._max_bytes:
                    raise self._too_large()
                if len(self.head) < HEAD:
                    self.head += chunk[: HEAD - len(self.head)]
                yield chunk
        if length is not None and length != self.size:
            raise SourceUnavailable(f"{self._host} sent {self.size} of {length} bytes.")

    def _too_large(self) -> SourceRefused:
        return SourceRefused(f"The file at {self._host} has more than {self._max_bytes} bytes.")


def _fits(host: str, pattern: str) -> bool:
    wild = pattern.startswith("*.")
    try:
        name = ascii_host(pattern[2:] if wild else pattern)
    except ValueError as error:
        raise SettingsError(
            f"{pattern!r} is not a host. Write files.example.com or *.example.com."
        ) from error
    return host.endswith(f".{name}") if wild else host == name


@contextmanager
def _as_unavailable(host: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise SourceUnavailable(f"{host} was silent too long.") from error
    except httpx.TransportError as error:
        raise SourceUnavailable(f"The connection to {host} failed: {error}") from error


def _seconds(retry_after: str | None) -> float | None:
    """Seconds or a date (RFC 9110, 10.2.3) as seconds from now; None if it is neither."""
    if (seconds := _number(retry_after)) is not None:
        return float(seconds)
    try:
        date = parsedate_to_datetime(retry_after or "")
        return max(0.0, date.replace(tzinfo=UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> int | None:
    digits = (text or "").strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
