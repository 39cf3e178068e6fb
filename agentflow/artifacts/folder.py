"""Artifacts as files in a folder.

A file appears under its key whole or not at all, also after `kill -9` or a loss of power: it is
written beside its place, synced, renamed, and the folders that lead to it are synced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from agentflow.artifacts.errors import ArtifactStoreError, ArtifactTooLarge
from agentflow.artifacts.store import Stored, checked_key
from agentflow.errors import NotFound, UsageError

BLOCK = 256 * 1024
"""Bytes per read or write; each is one trip to a thread."""

_PREFIX, _SUFFIX = ".put-", ".tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}

T = TypeVar("T")


class FolderStore:
    """An `ArtifactStore` in the folder `root`, which several processes may share."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).absolute()

    async def start(self, *, stale_after: float = 3600.0) -> int:
        """Make the folder, remove unfinished files not written to for `stale_after` seconds.

        Returns how many were removed. Younger ones may be another process's work.
        """
        return await self._in_thread(_clean, self._root, time.time() - stale_after)

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> Stored:
        """See `ArtifactStore.put`. Of concurrent puts, the last to finish stays.

        A cancellation leaves nothing behind, or the whole file if it came while renaming.
        """
        draft = _Draft(self._path(key), self._root)
        try:
            await self._in_thread(draft.open)
            block = bytearray()
            async for chunk in chunks:
                block += chunk
                if draft.size + len(block) > max_bytes:
                    raise ArtifactTooLarge(f"The artifact has more than {max_bytes} bytes.")
                if len(block) >= BLOCK:
                    await self._in_thread(draft.write, block)
                    block = bytearray()
            await self._in_thread(draft.write, block)
            await self._in_thread(draft.commit)
        except BaseException:
            await self._in_thread(draft.discard)
            raise
        return Stored(key, draft.hash.hexdigest(), draft.size)

    async def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See `ArtifactStore.open`."""
        if start < 0 or (end is not None and end < 0):
            raise UsageError("A range of an artifact counts from its first byte, 0.")
        path = self._path(key)
        if await self._in_thread(_size, path) is None:
            raise NotFound(f"There is no artifact {key!r}.")
        return self._read(path, start, end)

    async def size(self, key: str) -> int | None:
        """See `ArtifactStore.size`."""
        return await self._in_thread(_size, self._path(key))

    async def delete(self, key: str) -> None:
        """See `ArtifactStore.delete`. Folders stay."""
        await self._in_thread(_remove, self._path(key))

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    async def _read(self, path: Path, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        reader = _Reader(path, start, end)
        try:
            while block := await self._in_thread(reader.read):
                yield block
        finally:
            reader.close()

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        """Run `work` in a thread to its end, also when canceled: a file has one user at a time.

        A bare future, because `asyncio.run` cancels every task it finds when it ends.
        """
        future = asyncio.get_running_loop().run_in_executor(None, work, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            future.exception()
            raise
        except OSError as error:
            raise ArtifactStoreError(_sentence(error, self._root)) from error


class _Draft:
    """A file on its way to `path`, in the same folder under a name of its own."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path, self._root = path, root
        self._temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        self._file: BinaryIO | None = None
        self.hash = hashlib.sha256()
        self.size = 0

    def open(self) -> None:
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("xb")

    def write(self, block: bytes | bytearray) -> None:
        assert self._file is not None
        self._file.write(block)
        self.hash.update(block)
        self.size += len(block)

    def commit(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)
        folder = self._path.parent
        _sync(folder)
        while folder != self._root:
            folder = folder.parent
            _sync(folder)

    def discard(self) -> None:
        """Remove what was written, if anything; an error here would hide the first one."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


class _Reader:
    """The part of a file from `start` to `end`, block by block; opened at the first."""

    def __init__(self, path: Path, start: int, end: int | None) -> None:
        self._path, self._start, self._end = path, start, end
        self._file: BinaryIO | None = None

    def read(self) -> bytes:
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
            self._file.seek(self._start)
        wanted = BLOCK if self._end is None else min(BLOCK, self._end - self._file.tell())
        return self._file.read(max(wanted, 0))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _remove(path: Path) -> None:
    if _size(path) is not None:
        path.unlink(missing_ok=True)


def _clean(root: Path, before: float) -> int:
    root.mkdir(parents=True, exist_ok=True)
    removed = 0
    for draft in root.rglob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if draft.stat().st_mtime < before:
                draft.unlink()
                removed += 1
    return removed


def _sentence(error: OSError, root: Path) -> str:
    if error.errno in _FULL:
        return f"There is no room left for artifacts in {root}: {error.strerror}."
    if error.errno in _FORBIDDEN:
        return f"This process may not write artifacts in {root}: {error.strerror}."
    return f"The artifact folder {root} failed: {error.strerror or error}."
