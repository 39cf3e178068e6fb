"""A bucket of artifacts when S3 refuses, goes away, or changes under a reader."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.buckets import Bucket
from support.proxy import Proxy
from support.scripted import say, scripted
from support.servers import free_port

from agentflow.artifacts import ArtifactStoreError, BucketStore, artifact_store
from agentflow.artifacts import bucket as module
from agentflow.artifacts.bucket import PART, SEGMENT
from agentflow.cli.files import files
from agentflow.errors import NotFound, SettingsError
from agentflow.settings import Settings, load_settings

DATABASES = ()
LIMIT = 8 * PART

pytestmark = pytest.mark.usefixtures("bucket")


async def chunked(content: bytes, step: int = 65_536) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), step):
        yield content[start : start + step]


def at(endpoint: str, monkeypatch: pytest.MonkeyPatch, name: str = "b-1") -> BucketStore:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return BucketStore(f"s3://{name}/files")


# At the start


async def test_a_bucket_that_is_there_may_be_used(bucket: Bucket) -> None:
    await BucketStore(bucket.url).start()
    assert bucket.keys() == []


async def test_a_bucket_that_is_not_there_stops_the_start(bucket: Bucket) -> None:
    store = BucketStore("s3://no-such-bucket")
    with pytest.raises(SettingsError, match="no-such-bucket: there is no such bucket"):
        await store.start()


async def test_a_refusal_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted() as server:
        server(say(403, b"<Error><Code>InvalidAccessKeyId</Code><Message>No</Message></Error>"))
        with pytest.raises(SettingsError, match="access is refused") as refused:
            await at(server.url, monkeypatch).start()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)


@pytest.mark.parametrize("status", [500, 503, None])
async def test_one_that_is_out_of_reach_does_not_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """A server that comes back before its bucket does takes webhooks meanwhile."""
    with scripted() as server, capture_logs() as logs:
        server(say(status or 500, b"later"))
        endpoint = server.url if status else f"http://127.0.0.1:{free_port()}"
        await at(endpoint, monkeypatch).start()
    assert [line["event"] for line in logs] == ["The artifact bucket is out of reach"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://minio.example:9000"}, "in the clear"),
        ({"AWS_ENDPOINT_URL_S3": "http://10.0.0.7"}, "AWS_ALLOW_HTTP"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, r"it is http\(s\)://"),
        ({"AWS_ACCESS_KEY_ID": ""}, "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_setting_that_cannot_work_is_said(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], said: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        BucketStore("s3://bucket")


@pytest.mark.parametrize(
    "endpoint", ["http://localhost:9", "http://[::1]:9", "https://minio.example", "http://10.0.0.7"]
)
def test_files_cross_a_network_in_the_clear_only_if_told(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    if "10.0.0.7" in endpoint:
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    at(endpoint, monkeypatch)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(SettingsError, match=r"pip install 'agentflow-core\[s3\]'"):
        BucketStore("s3://bucket")


def test_the_library_is_not_imported_without_a_bucket() -> None:
    told = "import agentflow.artifacts, sys; print('obstore' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", told]) == b"False\n"


@pytest.mark.parametrize(
    "url",
    ["bucket", "s3://", "s3://b", "s3://key:secret@bucket", "s3://bucket?x=1", "s3://bucket/../x",
     "s3://bucket//x", "s3://Bucket", "gs://bucket", "s3://bucket:9000"],
)  # fmt: skip
def test_a_url_that_is_no_bucket_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AGENTFLOW_ARTIFACTS_URL", url)
    with pytest.raises(SettingsError, match=r"AGENTFLOW_ARTIFACTS_URL: .*s3://bucket") as refused:
        load_settings()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://my.bucket-1/a/b_c/", "s3://bucket/"])
def test_a_bucket_takes_the_place_of_the_folder(
    monkeypatch: pytest.MonkeyPatch, url: str, tmp_path: Any
) -> None:
    monkeypatch.setenv("AGENTFLOW_ARTIFACTS_URL", url)
    assert isinstance(artifact_store(load_settings()), BucketStore)
    monkeypatch.setenv("AGENTFLOW_ARTIFACTS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="both set"):
        load_settings()


# Away


async def test_a_bucket_out_of_reach_is_a_store_error_everywhere(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy("127.0.0.1", port(bucket)) as proxy:
        store = at(f"http://127.0.0.1:{proxy.port}", monkeypatch, bucket.name)
        await store.put("a", chunked(b"x"), max_bytes=1)
        proxy.cut()
        actions = [store.size("a"), store.open("a"), store.delete("a"),
                   store.put("b", chunked(b"x"), max_bytes=1),
                   store.put("c", chunked(b"x" * 2 * PART), max_bytes=LIMIT)]  # fmt: skip
        for action in actions:
            with pytest.raises(ArtifactStoreError, match="bucket-"):
                await action
        proxy.heal()
        assert await store.size("a") == 1
    assert bucket.keys() == ["a"]


async def test_an_upload_that_breaks_is_a_store_error_and_takes_no_more(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = 0

    async def source(proxy: Proxy) -> AsyncGenerator[bytes, None]:
        nonlocal given
        for n in range(2000):
            if n == 110:  # the first part is on its way
                proxy.cut()
            given += 1
            yield b"x" * 65_536

    async with Proxy("127.0.0.1", port(bucket)) as proxy:
        store = at(f"http://127.0.0.1:{proxy.port}", monkeypatch, bucket.name)
        with pytest.raises(ArtifactStoreError):
            await store.put("a", source(proxy), max_bytes=1 << 30)
    assert given < 1000
    assert bucket.keys() == []


async def test_a_bucket_that_is_slow_slows_the_source(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = 0

    async def source(proxy: Proxy) -> AsyncGenerator[bytes, None]:
        nonlocal given
        for n in range(1600):
            if n == 90:
                proxy.cut("blackhole")
            given += 65_536
            yield b"x" * 65_536

    async with Proxy("127.0.0.1", port(bucket)) as proxy:
        store = at(f"http://127.0.0.1:{proxy.port}", monkeypatch, bucket.name)
        put: Any = asyncio.ensure_future(store.put("a", source(proxy), max_bytes=1 << 30))
        await asyncio.sleep(2.0)
        held = given
        proxy.heal()
        stored = await put
    assert held <= 6 * PART
    assert stored.size == 1600 * 65_536


async def test_a_slow_reader_holds_little_in_memory(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(12 * SEGMENT)
    async with Proxy("127.0.0.1", port(bucket)) as proxy:
        store = at(f"http://127.0.0.1:{proxy.port}", monkeypatch, bucket.name)
        await store.put("a", chunked(content), max_bytes=LIMIT)
        before = proxy.received
        reading = await store.open("a")
        first = await anext(reading)
        await asyncio.sleep(1.0)
        assert proxy.received - before < 2.5 * SEGMENT
        assert first + b"".join([chunk async for chunk in reading]) == content


async def test_a_range_is_not_read_beyond(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Proxy("127.0.0.1", port(bucket)) as proxy:
        store = at(f"http://127.0.0.1:{proxy.port}", monkeypatch, bucket.name)
        await store.put("a", chunked(b"x" * 12 * SEGMENT), max_bytes=LIMIT)
        before = proxy.received
        assert [len(c) async for c in await store.open("a", 5 * SEGMENT, 5 * SEGMENT + 9)] == [9]
        assert proxy.received - before < 10_000


# Under a reader's eyes


async def test_a_file_that_is_replaced_is_never_read_as_a_mixture(bucket: Bucket) -> None:
    store = BucketStore(bucket.url)
    await store.put("a", chunked(b"o" * 4 * SEGMENT), max_bytes=LIMIT)
    reading = await store.open("a")
    await anext(reading)
    bucket.put("a", b"n" * 4 * SEGMENT)
    seen: list[bytes] = []
    with pytest.raises(ArtifactStoreError):
        await drain(reading, seen)
    assert set(b"".join(seen)) <= {ord("o")}


async def test_a_file_that_is_deleted_while_it_is_read_is_a_store_error(bucket: Bucket) -> None:
    store = BucketStore(bucket.url)
    await store.put("a", chunked(b"o" * 4 * SEGMENT), max_bytes=LIMIT)
    reading = await store.open("a")
    await anext(reading)
    bucket.remove("a")
    with pytest.raises(ArtifactStoreError):
        await drain(reading, [])
    with pytest.raises(NotFound):
        await store.open("a")


async def test_parts_grow_with_what_a_file_may_have(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 takes 10,000 parts and no more. The tag of an object ends with their number."""
    monkeypatch.setattr(module, "MOST_PARTS", 2)
    store = BucketStore(bucket.url)
    await store.put("a", chunked(b"x" * 4 * PART), max_bytes=4 * PART)
    assert (await store._meta("a"))["e_tag"].endswith('-2"')


# The doctor


@pytest.mark.parametrize("mode", ["all", "web"])
def test_the_doctor_reads_and_writes_what_the_role_will(bucket: Bucket, mode: Any) -> None:
    (found,) = files(Settings(artifacts_url=bucket.url, mode=mode))
    able = {"all": "can be read and written", "web": "can be read"}[mode]
    assert (found.state, found.said) == ("ok", f"{bucket.url} {able}")
    assert bucket.keys() == []


def test_the_doctor_says_what_is_wrong_with_the_files(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    wrong = [Settings(artifacts_url="s3://not-there"), Settings(artifacts_dir=tmp_path / "file")]
    for settings in wrong:
        (found,) = files(settings)
        assert found.state == "fail"
    (found,) = files(Settings(artifacts_dir=tmp_path / "new"))
    assert found.state == "ok"
    assert list(files(Settings())) == []


def test_the_doctor_finds_a_bucket_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    (found,) = files(Settings(artifacts_url="s3://bucket"))
    assert found.state == "fail"


# Killed

PUT = """
import asyncio, sys
from agentflow.artifacts import BucketStore

async def chunks():
    while True:
        yield b"x" * 262_144
        await asyncio.sleep(0.01)

async def main():
    store = BucketStore(sys.argv[1])
    await store.start()
    print("ready", flush=True)
    await store.put("a/0", chunks(), max_bytes=1 << 40)

asyncio.run(main())
"""


def test_an_upload_that_is_killed_is_not_seen(bucket: Bucket) -> None:
    with subprocess.Popen([sys.executable, "-c", PUT, bucket.url], stdout=subprocess.PIPE) as put:
        assert put.stdout is not None
        assert put.stdout.readline() == b"ready\n"
        end = time.monotonic() + 30
        while not bucket.uploads() and time.monotonic() < end:
            time.sleep(0.02)
        put.kill()
    assert bucket.keys() == []
    assert bucket.uploads() == ["a/0"], "the lifecycle rule of the bucket removes it"


async def drain(reading: AsyncIterator[bytes], seen: list[bytes]) -> None:
    async for chunk in reading:
        seen.append(chunk)


def port(bucket: Bucket) -> int:
    return int(bucket.endpoint.rpartition(":")[2])
