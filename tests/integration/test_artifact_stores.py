"""What every store of artifacts does, a folder and a bucket: whole files or none."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from support.buckets import Bucket

from agentflow.artifacts import ArtifactStore, ArtifactTooLarge, BucketStore, FolderStore
from agentflow.artifacts.bucket import PART, SEGMENT
from agentflow.errors import NotFound, UsageError

DATABASES = ()

BLOCK = 256 * 1024
LIMIT = 4 * PART


class Place:
    """A store, and what an outsider sees of it."""

    store: ArtifactStore

    def keys(self) -> list[str]:
        raise NotImplementedError

    def unfinished(self) -> int:
        raise NotImplementedError


class Folder(Place):
    def __init__(self, root: Path) -> None:
        self.store, self._root = FolderStore(root / "new"), root

    def _files(self) -> list[str]:
        found = (p for p in self._root.rglob("*") if p.is_file())
        return sorted(str(p.relative_to(self._root)).removeprefix("new/") for p in found)

    def keys(self) -> list[str]:
        return [name for name in self._files() if ".put-" not in name]

    def unfinished(self) -> int:
        return len(self._files()) - len(self.keys())


class OnS3(Place):
    def __init__(self, bucket: Bucket) -> None:
        self.store, self._bucket = BucketStore(bucket.url), bucket

    def keys(self) -> list[str]:
        return self._bucket.keys()

    def unfinished(self) -> int:
        return len(self._bucket.uploads())


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Folder(tmp_path)
    return OnS3(request.getfixturevalue("bucket"))


@pytest.fixture
def store(place: Place) -> ArtifactStore:
    return place.store


async def chunked(content: bytes, step: int = 65_536) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), step):
        yield content[start : start + step]


async def failing(content: bytes, error: BaseException) -> AsyncGenerator[bytes, None]:
    async for chunk in chunked(content):
        yield chunk
    raise error


async def read(store: ArtifactStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in await store.open(key, start, end)])


SIZES = [0, 1, 999, BLOCK, BLOCK + 1, SEGMENT + 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 7]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1000, 2 * BLOCK])
async def test_what_is_put_is_read_back(place: Place, size: int, step: int) -> None:
    content, store = os.urandom(size), place.store
    await store.start()
    stored = await store.put("a/b/c.bin", chunked(content, step), max_bytes=LIMIT)
    assert (stored.key, stored.size) == ("a/b/c.bin", size)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert await read(store, "a/b/c.bin") == content
    assert await store.size("a/b/c.bin") == size
    assert (place.keys(), place.unfinished()) == (["a/b/c.bin"], 0)


async def test_a_range_is_a_slice(store: ArtifactStore) -> None:
    content = os.urandom(2 * SEGMENT + 10)
    await store.put("a", chunked(content), max_bytes=LIMIT)
    far = len(content) + 5
    for start, end in [(0, 1), (5, None), (SEGMENT - 1, SEGMENT + 1), (7, 7), (9, 3), (0, 0),
                       (far, None), (3, far), (1, len(content) - 1), (SEGMENT, None)]:  # fmt: skip
        assert await read(store, "a", start, end) == content[start:end]
    for wrong in ((-1, None), (0, -1)):
        with pytest.raises(UsageError):
            await store.open("a", *wrong)


async def test_an_unknown_key_is_not_found_at_once(store: ArtifactStore) -> None:
    await store.put("a/b", chunked(b"x"), max_bytes=1)
    for key in ("c", "a", "a/b/c"):
        assert await store.size(key) is None
        with pytest.raises(NotFound):
            await store.open(key)


async def test_a_deleted_key_is_gone_and_deleting_again_is_no_error(store: ArtifactStore) -> None:
    await store.put("a/b", chunked(b"x"), max_bytes=1)
    for key in ("a/b", "a/b", "a", "never"):
        await store.delete(key)
    assert await store.size("a/b") is None


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "a/../b", "../a", "a//b", "a/", "./a", ".hidden", "a/.put-1.tmp",
     "a b", "a\n", "a\0b", "ä", "a\\b", "~/a:b", "x" * 201, "/".join(["x" * 100] * 9)],
)  # fmt: skip
async def test_a_key_that_is_none_is_refused(place: Place, key: str) -> None:
    store = place.store
    for action in (store.put(key, chunked(b"x"), max_bytes=1), store.open(key), store.size(key),
                   store.delete(key)):  # fmt: skip
        with pytest.raises(UsageError, match="is not an artifact key"):
            await action
    assert place.keys() == []


async def test_a_longest_key_is_stored(store: ArtifactStore) -> None:
    key = "/".join(["x" * 199] * 4)
    assert (await store.put(key, chunked(b"x"), max_bytes=1)).size == 1
    assert await read(store, key) == b"x"


@pytest.mark.parametrize(("size", "most"), [(11, 10), (3 * BLOCK, 10), (3 * PART, 2 * PART)])
async def test_more_than_the_cap_is_never_stored(place: Place, size: int, most: int) -> None:
    with pytest.raises(ArtifactTooLarge, match=f"{most} bytes"):
        await place.store.put("a", chunked(b"x" * size), max_bytes=most)
    assert (await place.store.put("b", chunked(b"x" * most), max_bytes=most)).size == most
    assert (place.keys(), place.unfinished()) == (["b"], 0)


@pytest.mark.parametrize("size", [10, 2 * BLOCK, 2 * PART + 1])
async def test_a_failed_put_leaves_what_was_there(place: Place, size: int) -> None:
    store = place.store
    await store.put("a", chunked(b"old"), max_bytes=LIMIT)
    with pytest.raises(RuntimeError, match="torn"):
        await store.put("a", failing(b"x" * size, RuntimeError("torn")), max_bytes=LIMIT)
    assert await read(store, "a") == b"old"
    assert (place.keys(), place.unfinished()) == (["a"], 0)


async def test_concurrent_puts_of_one_key_leave_one_whole_file(place: Place) -> None:
    store = place.store
    contents = [bytes([n]) * (PART + n) for n in range(6)]
    puts = [store.put("a/b", chunked(content), max_bytes=LIMIT) for content in contents]
    stored = await asyncio.gather(*puts)
    assert [each.size for each in stored] == [len(content) for content in contents]
    assert await read(store, "a/b") in contents
    assert (place.keys(), place.unfinished()) == (["a/b"], 0)


@pytest.mark.parametrize("stage", [0.0, 0.3, 0.6, 0.9])
async def test_a_put_that_is_canceled_leaves_nothing_or_the_whole(
    place: Place, stage: float
) -> None:
    content, taken = b"x" * (3 * PART), asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        sent = 0
        async for chunk in chunked(content):
            sent += len(chunk)
            if sent >= stage * len(content):
                taken.set()
            yield chunk

    put: Any = asyncio.ensure_future(place.store.put("a", source(), max_bytes=LIMIT))
    await taken.wait()
    put.cancel()
    put.cancel()
    result, *_ = await asyncio.gather(put, return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError)
    assert place.keys() in ([], ["a"])
    assert place.unfinished() == 0


async def test_a_silent_source_is_left_when_the_put_is_canceled(place: Place) -> None:
    """Nothing waits for a byte that never comes."""
    silent = asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        yield b"x" * (PART + 1)
        silent.set()
        await asyncio.Event().wait()

    put: Any = asyncio.ensure_future(place.store.put("a", source(), max_bytes=LIMIT))
    await silent.wait()
    await asyncio.sleep(0.2)
    put.cancel()
    async with asyncio.timeout(20):
        await asyncio.gather(put, return_exceptions=True)
    assert (place.keys(), place.unfinished()) == ([], 0)


async def test_a_reader_that_leaves_early_leaves_nothing_running(store: ArtifactStore) -> None:
    await store.put("a", chunked(b"o" * 3 * SEGMENT), max_bytes=LIMIT)
    before = len(asyncio.all_tasks())
    await store.open("a")
    reading = await store.open("a")
    await anext(reading)
    await reading.aclose()
    assert len(asyncio.all_tasks()) == before
