"""A folder of artifacts. What it has in common with a bucket: `test_artifact_stores.py`."""

import asyncio
import errno
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from agentflow.artifacts import ArtifactStoreError, FolderStore
from agentflow.artifacts.folder import BLOCK

LIMIT = 10 * BLOCK

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


async def chunked(content: bytes, step: int = 1000) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), step):
        yield content[start : start + step]


async def failing(content: bytes, error: BaseException) -> AsyncGenerator[bytes, None]:
    yield content
    raise error


async def read(store: FolderStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in await store.open(key, start, end)])


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_reader_keeps_the_file_it_opened(tmp_path: Path) -> None:
    store, old = FolderStore(tmp_path), b"o" * 2 * BLOCK
    await store.put("a", chunked(old), max_bytes=LIMIT)
    reading = await store.open("a")
    first = await anext(reading)
    await store.put("a", chunked(b"new"), max_bytes=LIMIT)
    assert first + b"".join([chunk async for chunk in reading]) == old


@linux
async def test_a_reader_left_early_closes_its_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put("a", chunked(b"o" * 2 * BLOCK), max_bytes=LIMIT)
    before = len(os.listdir("/proc/self/fd"))
    await store.open("a")
    reading = await store.open("a")
    await anext(reading)
    await reading.aclose()
    assert len(os.listdir("/proc/self/fd")) == before


@linux
async def test_a_file_is_synced_before_it_gets_its_name_and_its_folders_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[str]()
    sync, replace = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("sync file" if path.is_file() else f"sync {path.relative_to(tmp_path)}")
        sync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    await FolderStore(tmp_path).put("a/b/c", chunked(b"x"), max_bytes=1)
    assert steps == ["sync file", "rename", "sync a/b", "sync a", "sync ."]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "There is no room left for artifacts in"),
        (errno.EDQUOT, "There is no room left for artifacts in"),
        (errno.EACCES, "This process may not write artifacts in"),
        (errno.EROFS, "This process may not write artifacts in"),
        (errno.EIO, "failed: Input/output error"),
    ],
)
async def test_a_failing_disk_is_a_clear_sentence_and_nothing_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactStoreError, match=sentence):
        await FolderStore(tmp_path).put("a", chunked(b"x"), max_bytes=1)
    assert files(tmp_path) == []


async def test_a_root_or_key_below_a_file_is_a_store_error(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put("a", chunked(b"x"), max_bytes=1)
    with pytest.raises(ArtifactStoreError):
        await store.put("a/b", chunked(b"x"), max_bytes=1)
    with pytest.raises(ArtifactStoreError):
        await FolderStore(tmp_path / "a").start()
    await store.put("c/d", chunked(b"x"), max_bytes=1)
    with pytest.raises(ArtifactStoreError):
        await store.put("c", chunked(b"x"), max_bytes=1)
    assert files(tmp_path) == ["a", "c/d"]


async def test_start_removes_only_old_unfinished_files(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "root")
    assert await store.start() == 0
    await store.put("a/b", chunked(b"x"), max_bytes=1)
    folder = tmp_path / "root" / "a"
    for name in (".put-old.tmp", ".put-young.tmp"):
        (folder / name).write_bytes(b"half")
    for name in (".put-old.tmp", "b"):
        os.utime(folder / name, (1, 1))
    assert await store.start(stale_after=60) == 1
    assert files(folder) == [".put-young.tmp", "b"]


async def test_a_put_canceled_at_any_step_leaves_nothing_or_the_whole(tmp_path: Path) -> None:
    content, whole = b"x" * (3 * BLOCK), 0
    for steps in range(60):
        root = tmp_path / str(steps)
        store = FolderStore(root)
        put = asyncio.create_task(store.put("a", chunked(content, BLOCK), max_bytes=LIMIT))
        for _ in range(steps):
            await asyncio.sleep(0 if steps % 2 else 0.0002)
        put.cancel()
        put.cancel()
        result, *_ = await asyncio.gather(put, return_exceptions=True)
        left = files(root) if root.exists() else []
        assert left in ([], ["a"])
        if not isinstance(result, BaseException):
            assert left == ["a"]
        if left:
            whole += 1
            assert (root / "a").read_bytes() == content
    assert whole < 60


async def test_a_canceled_put_does_not_end_before_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the thread would write a file after it was cleaned away."""
    loop, reached, sync = asyncio.get_running_loop(), asyncio.Event(), os.fsync

    def slow(descriptor: int) -> None:
        loop.call_soon_threadsafe(reached.set)
        time.sleep(0.1)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    put = asyncio.create_task(FolderStore(tmp_path).put("a/b", chunked(b"x"), max_bytes=1))
    await reached.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert files(tmp_path) == ["a/b"]
