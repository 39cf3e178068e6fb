"""Artifacts in a bucket of S3, or of what speaks like it: MinIO, R2, Ceph, GCS.

An object appears under its key whole or not at all. A small file is one request; a large one is a
multipart upload, which nobody sees before it is completed and which is aborted when anything
fails. What a killed process had begun lies unseen at the bucket until its lifecycle rule for
incomplete multipart uploads removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

import structlog

from agentflow.artifacts import s3
from agentflow.artifacts.errors import ArtifactStoreError, ArtifactTooLarge
from agentflow.artifacts.feed import Feed
from agentflow.artifacts.store import Stored, checked_key
from agentflow.errors import NotFound, SettingsError, UsageError

log = structlog.get_logger(__name__)

PART = 5 * 1024 * 1024
"""The smallest part S3 takes; smaller files are sent in one request."""

MOST_PARTS = 10_000

SEGMENT = 1024 * 1024
"""Bytes of one request of a download. Each ends before the next but one begins, so that a slow
reader holds no connection and little memory."""

UPLOADS = 8
"""Multipart uploads at once: each holds up to four parts in memory."""

CHECK = "agentflow-check"
"""A key that belongs to no file."""

_GIVE_UP = 40.0
"""Seconds after which an upload that is to be aborted is left to the lifecycle rule."""

T = TypeVar("T")


class BucketStore:
    """An `ArtifactStore` in the bucket of `s3://bucket/prefix`, which several processes share.
    Raises `SettingsError`."""

    def __init__(self, url: str) -> None:
        self._place = f"The artifact bucket {url}"
        self._store: Any = s3.connect(url)
        self._errors = s3.errors()
        self._uploads = asyncio.Semaphore(UPLOADS)

    async def start(self) -> None:
        """See `ArtifactStore.start`. Asks for a file that does not exist, which needs the rights
        to read and to list: without the second the answer to a missing file is a refusal."""
        try:
            await self._store.get_async(CHECK)
        except self._errors as error:
            if isinstance(error, FileNotFoundError) and not s3.no_bucket(error):
                return
            if not s3.away(error):
                raise SettingsError(f"{self._place}: {s3.reason(error)}") from None
            log.warning("The artifact bucket is out of reach", problem=s3.first_line(error))

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> Stored:
        """See `ArtifactStore.put`. Of concurrent puts, the last to finish stays. A cancellation
        leaves nothing to see, or the whole file if it came when that was being completed."""
        checked_key(key)
        tally, first = _Tally(max_bytes), bytearray()
        async for chunk in chunks:
            tally.add(chunk)
            first += chunk
            if len(first) >= PART:
                break
        if len(first) < PART:
            await self._asked(self._store.put_async(key, bytes(first), use_multipart=False))
        else:
            async with self._uploads:
                await self._upload(key, bytes(first), chunks, tally)
        return Stored(key, tally.hash.hexdigest(), tally.size)

    async def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See `ArtifactStore.open`."""
        if start < 0 or (end is not None and end < 0):
            raise UsageError("A range of an artifact counts from its first byte, 0.")
        meta = await self._meta(key)
        if meta is None:
            raise NotFound(f"There is no artifact {key!r}.")
        stop = meta["size"] if end is None else min(end, meta["size"])
        reader = _Reader(self, key, meta["e_tag"], stop)
        first = await reader.segment(start) if start < stop else b""
        return reader.read(start, first)

    async def size(self, key: str) -> int | None:
        """See `ArtifactStore.size`."""
        meta = await self._meta(key)
        return None if meta is None else int(meta["size"])

    async def delete(self, key: str) -> None:
        """See `ArtifactStore.delete`."""
        await self._found(self._store.delete_async(checked_key(key)))

    async def _meta(self, key: str) -> Any:
        return await self._found(self._store.head_async(checked_key(key)))

    async def part(self, key: str, e_tag: str | None, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` of the object as it was when its tag was told."""
        options = {"range": (start, end), **({"if_match": e_tag} if e_tag else {})}
        found = await self._found(self._store.get_async(key, options=options))
        if found is None:
            raise ArtifactStoreError(f"{self._place}: {key} went while it was read")
        return bytes(await self._asked(found.bytes_async()))

    async def _asked(self, answer: Awaitable[T]) -> T:
        """The answer, or what the library raised as an error of ours."""
        try:
            return await answer
        except self._errors as error:
            raise s3.store_error(error, self._place) from error

    async def _found(self, answer: Awaitable[T]) -> T | None:
        """The same; None if there is no such object."""
        try:
            return await answer
        except self._errors as error:
            if isinstance(error, FileNotFoundError) and not s3.no_bucket(error):
                return None
            raise s3.store_error(error, self._place) from error

    async def _upload(
        self, key: str, first: bytes, chunks: AsyncIterator[bytes], tally: _Tally
    ) -> None:
        """In parts, of which two are on their way at once. Whatever is raised here aborts it."""
        feed = Feed()
        sending = asyncio.ensure_future(
            self._store.put_async(
                key,
                aiter(feed),
                use_multipart=True,
                chunk_size=max(PART, -(-tally.max_bytes // MOST_PARTS)),
                max_concurrency=2,
            )
        )
        sending.add_done_callback(lambda _: feed.leave())
        try:
            await feed.give(first)
            async for chunk in chunks:
                tally.add(chunk)
                if not await feed.give(chunk):
                    break
            await feed.end()
            await self._asked(asyncio.shield(sending))
        except BaseException:
            feed.withdraw()
            await _ended(sending)
            raise


class _Tally:
    """Counts and hashes what passes; raises `ArtifactTooLarge` beyond `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hash = hashlib.sha256()
        self.size = 0

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self.max_bytes:
            raise ArtifactTooLarge(f"The artifact has more than {self.max_bytes} bytes.")
        self.hash.update(chunk)


class _Reader:
    """The bytes up to `end` of one object, segment by segment, the next on its way while one is
    read."""

    def __init__(self, store: BucketStore, key: str, e_tag: str | None, end: int) -> None:
        self._store, self._key, self._e_tag, self.end = store, key, e_tag, end

    async def segment(self, start: int) -> bytes:
        stop = min(start + SEGMENT, self.end)
        return await self._store.part(self._key, self._e_tag, start, stop)

    async def read(self, start: int, block: bytes) -> AsyncGenerator[bytes, None]:
        ahead: asyncio.Task[bytes] | None = None
        try:
            while block:
                start += len(block)
                if start < self.end:
                    ahead = asyncio.create_task(self.segment(start))
                yield block
                block = await ahead if ahead else b""
                ahead = None
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.wait([ahead])


async def _ended(sending: asyncio.Future[Any]) -> None:
    """Wait until the upload is aborted, also when canceled: who is told that a put failed may
    begin another."""
    loop = asyncio.get_running_loop()
    last = loop.time() + _GIVE_UP
    while not sending.done() and (left := last - loop.time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([sending], timeout=left)
    sending.cancel()
    if not sending.cancelled() and sending.done():
        sending.exception()
