"""Files in custody: whole, in parts, and harmless to whoever saves or shows them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support.buckets import S3Server
from support.web import World, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = bytes(range(256)) * 40
SIZE = len(CONTENT)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["folder", "bucket"])
async def api(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    module_database: str | None,
    s3_server: S3Server,
) -> AsyncIterator[World]:
    bucket = s3_server.bucket()
    options = {} if request.param == "folder" else {"artifacts_url": bucket.url}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environ.items():
            patch.setenv(name, value)
        async with world(tmp_path_factory.mktemp("http"), **options) as running:
            yield running


async def stored(api: World, content: bytes = CONTENT, **more: Any) -> Any:
    """The artifact of a finished job."""
    url = f"data:application/x-test;base64,{base64.b64encode(content).decode()}"
    job = await api.finished("acme.file", {"url": url, **more})
    assert job["status"] == "succeeded", job
    return job["result"]["artifacts"][0]


async def test_a_file_is_what_was_made(api: World) -> None:
    file = await stored(api, name="sky.bin")
    answer = await api.http.get(file["url"])
    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert file["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert file["size"] == SIZE == int(answer.headers["content-length"])
    assert answer.headers["content-type"] == "application/x-test"
    assert answer.headers["etag"] == f'"{file["sha256"]}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == 'attachment; filename="sky.bin"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert file["url"] == f"/v1/artifacts/{file['id']}"


async def test_head_tells_the_size_and_sends_nothing(api: World) -> None:
    file = await stored(api)
    answer = await api.http.head(file["url"])
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(SIZE)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=100-", 100, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        ("bytes=-100", SIZE - 100, SIZE),
        (f"bytes=-{SIZE * 9}", 0, SIZE),
        (f"bytes={SIZE - 1}-{SIZE * 9}", SIZE - 1, SIZE),
        (f"bytes=0-{'9' * 18}", 0, SIZE),
    ],
)
async def test_a_range_is_a_part(api: World, asked: str, start: int, end: int) -> None:
    file = await stored(api)
    answer = await api.http.get(file["url"], headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=999999-", "bytes=-0", "bytes=9-5"])
async def test_a_range_that_holds_nothing_is_a_416(api: World, asked: str) -> None:
    file = await stored(api)
    answer = await api.http.get(file["url"], headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked",
    ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,4-5", "lines=0-1", "bytes=--1",
     "bytes=1.5-2", "bytes=٣-", f"bytes=0-{'9' * 500}", "bytes 0-1/2"],
)  # fmt: skip
async def test_a_range_that_is_not_understood_is_ignored(api: World, asked: str) -> None:
    file = await stored(api)
    answer = await api.http.get(file["url"], headers={"Range": asked.encode()})
    assert (answer.status_code, answer.content) == (200, CONTENT)


async def test_an_empty_file_has_no_ranges(api: World) -> None:
    file = await stored(api, b"")
    assert (await api.http.get(file["url"])).content == b""
    answer = await api.http.get(file["url"], headers={"Range": "bytes=0-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', '"x", "{}"', '"a",W/"{}" , "b"'])
async def test_a_file_that_is_known_is_not_sent_again(api: World, form: str) -> None:
    file = await stored(api)
    known = {"If-None-Match": form.format(file["sha256"])}
    for headers in (known, {**known, "Range": "bytes=999999-"}):
        answer = await api.http.get(file["url"], headers=headers)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == f'"{file["sha256"]}"'


@pytest.mark.parametrize("other", ['"x"', "{}", "", '"{}x"'])
async def test_another_file_that_is_known_changes_nothing(api: World, other: str) -> None:
    file = await stored(api)
    headers = {"If-None-Match": other.format(file["sha256"])}
    assert (await api.http.get(file["url"], headers=headers)).status_code == 200


async def test_a_range_of_another_version_is_the_whole(api: World) -> None:
    file = await stored(api)
    same = {"Range": "bytes=0-1", "If-Range": f'"{file["sha256"]}"'}
    assert (await api.http.get(file["url"], headers=same)).status_code == 206
    for validator in ('"old"', f'W/"{file["sha256"]}"', "Tue, 24 Nov 2026 00:00:00 GMT"):
        answer = await api.http.get(file["url"], headers={**same, "If-Range": validator})
        assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b.png", "a_b.png"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ('x"; filename="evil.exe', "x_filename_evil.exe"),
        ("a\r\nX-Evil: 1\r\n\r\n<script>", "aX-Evil_1_script_"),
        (".htaccess", "htaccess"),
        ("漢字.txt", "txt"),
        ("n" * 500 + ".txt", "n" * 96 + ".txt"),
        ("-rf", "rf"),
    ],
)
async def test_a_name_is_safe_to_save_under(api: World, name: str, shown: str) -> None:
    file = await stored(api, name=name)
    answer = await api.http.get(file["url"])
    assert answer.headers["content-disposition"] == f'attachment; filename="{shown}"'
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    "media_type", ["text/html\r\nX-Evil: 1", "漢字/x", "", "text", "text/html; charset=\x01"]
)
async def test_a_media_type_cannot_smuggle_anything(api: World, media_type: str) -> None:
    file = await stored(api, b"\x01plain", name="x", media_type=media_type)
    answer = await api.http.get(file["url"])
    assert answer.headers["content-type"] in {"text/html", "application/x-test"}
    assert "x-evil" not in answer.headers


async def test_only_what_is_in_custody_is_served(api: World) -> None:
    file = await stored(api)
    place = file["id"].rsplit("_", 1)[0]
    strange = (f"{place}_00", f"{place}_\u0663", place.upper() + "_0", f"art_%00{'a' * 31}_0")
    for id in (f"{place}_1", f"{place}_99999999", f"{place}_-1", f"{place}_", place, *strange):
        assert (await api.http.get(f"/v1/artifacts/{id}")).status_code == 404, id


async def test_a_file_that_vanished_from_the_store_is_a_404_without_its_place(api: World) -> None:
    file = await stored(api)
    digits = file["id"].split("_")[1]
    await api.app.runtime.artifacts.delete(f"{digits[:8]}/{digits}/0")
    answer = await api.http.get(file["url"])
    assert answer.status_code == 404
    assert f"{digits[:8]}/" not in answer.text


async def test_a_large_result_is_a_file(api: World) -> None:
    said = {"text": "x" * 250_000, "more": ["y"] * 3000}
    job = await api.finished("acme.echo", said)
    assert job["result"]["output"] == said
    api.app.runtime.worker.files.max_result = 1000
    try:
        job = await api.finished("acme.echo", said)
    finally:
        api.app.runtime.worker.files.max_result = 262_144
    assert job["result"]["output"] is None
    file = job["result"]["artifacts"][0]
    assert (await api.http.get(file["url"])).json() == said
