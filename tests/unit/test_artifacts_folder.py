"""A folder of artifacts: whole files or none."""

import asyncio
import errno
import hashlib
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from agentflow.artifacts import ArtifactStoreError, ArtifactTooLarge, FolderStore
from agentflow.artifacts.folder import BLOCK
from agentflow.errors import NotFound, UsageError

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


@pytest.mark.parametrize("size", [0, 1, 999, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("step", [1000, 2 * BLOCK])
async def test_what_is_put_is_read_back(tmp_path: Path, size: int, step: int) -> None:
    content, store = os.urandom(size), FolderStore(tmp_path / "new")
    stored = await store.put("a/b/c.bin", chunked(content, step), max_bytes=LIMIT)
    assert (stored.key, stored.size) == ("a/b/c.bin", size)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert await read(store, "a/b/c.bin") == content
    assert await store.size("a/b/c.bin") == size
    assert files(tmp_path) == ["new/a/b/c.bin"]


async def test_a_range_is_a_slice(tmp_path: Path) -> None:
    content, store = os.urandom(2 * BLOCK + 10), FolderStore(tmp_path)
    await store.put("a", chunked(content), max_bytes=LIMIT)
    far = len(content) + 5
    for start, end in [(0, 1), (5, None), (BLOCK - 1, BLOCK + 1), (7, 7), (9, 3), (far, None),
                       (3, far), (1, len(content) - 1)]:  # fmt: skip
        assert await read(store, "a", start, end) == content[start:end]
    with pytest.raises(UsageError):
        await store.open("a", -1)


async def test_an_unknown_key_is_not_found_at_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put("a/b", chunked(b"x"), max_bytes=1)
    for key in ("c", "a", "a/b/c"):
        assert await store.size(key) is None
        with pytest.raises(NotFound):
            await store.open(key)


async def test_a_deleted_key_is_gone_and_deleting_again_is_no_error(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put("a/b", chunked(b"x"), max_bytes=1)
    for key in ("a/b", "a/b", "a", "never"):
        await store.delete(key)
    assert await store.size("a/b") is None


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "a/../b", "../a", "a//b", "a/", "./a", ".hidden", "a/.put-1.tmp",
     "a b", "a\n", "a\0b", "ä", "a\\b", "~/a:b", "x" * 201, "/".join(["x" * 100] * 9)],
)  # fmt: skip
async def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    store = FolderStore(tmp_path / "root")
    for action in (store.put(key, chunked(b"x"), max_bytes=1), store.open(key), store.size(key),
                   store.delete(key)):  # fmt: skip
        with pytest.raises(UsageError, match="is not an artifact key"):
            await action
    assert files(tmp_path) == []


async def test_a_longest_key_is_stored(tmp_path: Path) -> None:
    key = "/".join(["x" * 199] * 4)
    assert (await FolderStore(tmp_path).put(key, chunked(b"x"), max_bytes=1)).size == 1


@pytest.mark.parametrize("size", [11, 3 * BLOCK])
async def test_more_than_the_cap_is_never_stored(tmp_path: Path, size: int) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(ArtifactTooLarge, match="10 bytes"):
        await store.put("a", chunked(b"x" * size), max_bytes=10)
    assert (await store.put("b", chunked(b"x" * 10), max_bytes=10)).size == 10
    assert files(tmp_path) == ["b"]


async def test_a_failed_put_leaves_what_was_there(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put("a", chunked(b"old"), max_bytes=LIMIT)
    with pytest.raises(RuntimeError, match="torn"):
        await store.put("a", failing(b"x" * 2 * BLOCK, RuntimeError("torn")), max_bytes=LIMIT)
    assert await read(store, "a") == b"old"
    assert files(tmp_path) == ["a"]


async def test_concurrent_puts_of_one_key_leave_one_whole_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    contents = [bytes([n]) * (BLOCK + n) for n in range(8)]
    puts = [store.put("a/b", chunked(content), max_bytes=LIMIT) for content in contents]
    stored = await asyncio.gather(*puts)
    assert [each.size for each in stored] == [len(content) for content in contents]
    assert await read(store, "a/b") in contents
    assert files(tmp_path) == ["a/b"]


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
