"""Take a file into custody: from the URL a provider gave, dead within the hour, to our storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from typing import Literal

import httpx

from agentflow.artifacts.download import Download, checked_url
from agentflow.artifacts.errors import SourceUnavailable
from agentflow.artifacts.inline import decode, is_inline
from agentflow.artifacts.media import HEAD, file_name, media_type
from agentflow.artifacts.store import ArtifactStore, Stored

_BLOCK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file is, by an `http`, `https` or `data` URL, and what its provider said of it."""

    url: str = field(repr=False)
    media_type: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Custody:
    """A file in our storage: `sha256` in lower-case hex, `size` in bytes, `name` a bare one."""

    key: str
    sha256: str
    size: int
    media_type: str
    name: str
    status: Literal["stored"] = "stored"


async def collect(
    source: Source,
    store: ArtifactStore,
    client: httpx.AsyncClient,
    *,
    key: str,
    max_bytes: int,
    allowed_hosts: Collection[str] | None,
    total_timeout: float = 900.0,
    idle_timeout: float = 30.0,
) -> Custody:
    """Copy the source's bytes, as they are sent, to `key`: all of them or nothing.

    `client` comes from `guarded_client`. `allowed_hosts` holds exact hosts, and `*.domain` for
    every host below a domain; None is any public host. Timeouts are in seconds: for the whole, and
    for each silence. Raises `SourceGone`, `SourceRefused`, `SourceUnavailable` (of these only the
    last is worth another try) and what the store raises.
    """
    try:
        async with asyncio.timeout(total_timeout):
            if is_inline(source.url):
                return await _keep(source, store, key, max_bytes)
            url = checked_url(source.url, allowed_hosts)
            download = Download(url, max_bytes)
            async with download.chunks(client, idle_timeout) as chunks:
                stored = await store.put(key, chunks, max_bytes=max_bytes)
    except TimeoutError as error:
        raise SourceUnavailable(f"The file did not arrive in {total_timeout:g} s.") from error
    return _custody(stored, source, download.head, download.declared, url.path)


async def _keep(source: Source, store: ArtifactStore, key: str, max_bytes: int) -> Custody:
    declared, content = await asyncio.to_thread(decode, source.url, max_bytes)
    stored = await store.put(key, _blocks(content), max_bytes=max_bytes)
    return _custody(stored, source, content[:HEAD], declared, "")


async def _blocks(content: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), _BLOCK):
        yield content[start : start + _BLOCK]


def _custody(
    stored: Stored, source: Source, head: bytes, declared: str | None, path: str
) -> Custody:
    name = file_name(source.name, path)
    kind = media_type(head, (source.media_type, declared), name)
    return Custody(stored.key, stored.sha256, stored.size, kind, name)
