"""Which URLs and which answers are taken; the answers come from a mock of the far side."""

from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from time import asctime, gmtime, time, tzset
from typing import Any

import httpx
import pytest

from agentflow.artifacts import (
    Custody,
    FolderStore,
    Source,
    SourceGone,
    SourceRefused,
    SourceUnavailable,
    collect,
)
from agentflow.artifacts.download import checked_url
from agentflow.errors import SettingsError


class Raw(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self.content, self.closed = content, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content

    async def aclose(self) -> None:
        self.closed = True


async def take(tmp_path: Path, response: Any, source: Source | None = None) -> Custody:
    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        assert isinstance(response, httpx.Response)
        return response

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        return await collect(
            source or Source("https://files.example/a/out.bin?signature=secret"),
            FolderStore(tmp_path),
            client,
            key="k",
            max_bytes=100,
            allowed_hosts=None,
        )


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_an_expired_file_is_gone(tmp_path: Path, status: int) -> None:
    with pytest.raises(SourceGone, match=str(status)):
        await take(tmp_path, httpx.Response(status))


@pytest.mark.parametrize("status", [202, 408, 425, 429, 500, 502, 503, 504])
async def test_a_passing_trouble_is_unavailable(tmp_path: Path, status: int) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        await take(tmp_path, httpx.Response(status))
    assert caught.value.retry_after is None


@pytest.mark.parametrize("status", [201, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 451])
async def test_any_other_answer_is_refused(tmp_path: Path, status: int) -> None:
    with pytest.raises(SourceRefused, match=str(status)):
        await take(tmp_path, httpx.Response(status, headers={"location": "/"}))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), (" 0 ", 0), ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
     ("soon", None), ("-1", None), ("9" * 5000, None), ("", None)],
)  # fmt: skip
async def test_the_wish_to_wait_is_kept(tmp_path: Path, header: str, seconds: float | None) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        await take(tmp_path, httpx.Response(429, headers={"retry-after": header}))
    assert caught.value.retry_after == seconds


async def test_a_date_to_wait_for_is_read_as_gmt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    tzset()
    for header in (formatdate(time() + 100, usegmt=True), asctime(gmtime(time() + 100))):
        with pytest.raises(SourceUnavailable) as caught:
            await take(tmp_path, httpx.Response(429, headers={"retry-after": header}))
        assert caught.value.retry_after == pytest.approx(100, abs=10)
    monkeypatch.undo()
    tzset()


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("no"), httpx.ReadTimeout("no"), httpx.PoolTimeout("no"),
     httpx.RemoteProtocolError("no"), httpx.ReadError("no")],
)  # fmt: skip
async def test_a_broken_connection_is_unavailable(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(SourceUnavailable, match=r"files\.example"):
        await take(tmp_path, error)


@pytest.mark.parametrize("error", [httpx.ReadError("no"), httpx.ReadTimeout("no")])
async def test_a_body_that_breaks_is_unavailable_and_not_stored(
    tmp_path: Path, error: Exception
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises(SourceUnavailable):
        await take(tmp_path, httpx.Response(200, content=body()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", ["3", "5"])
async def test_a_length_that_does_not_fit_is_unavailable_and_not_stored(
    tmp_path: Path, length: str
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"four"

    response = httpx.Response(200, headers={"content-length": length}, content=body())
    with pytest.raises(SourceUnavailable, match=f"4 of {length} bytes"):
        await take(tmp_path, response)
    assert list(tmp_path.iterdir()) == []


async def test_the_cap_is_exact(tmp_path: Path) -> None:
    async def body(size: int) -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x"

    assert (await take(tmp_path, httpx.Response(200, content=body(100)))).size == 100
    with pytest.raises(SourceRefused, match="more than 100 bytes"):
        await take(tmp_path, httpx.Response(200, content=body(101)))


async def test_the_file_is_described_by_bytes_source_header_and_name(tmp_path: Path) -> None:
    png, text = b"\x89PNG\r\n\x1a\n", {"content-type": "text/css; charset=utf-8"}
    plain = Source("https://files.example/a/out.csv", "text/x-log", "log")
    assert await take(tmp_path, httpx.Response(200, headers=text, stream=Raw(png))) == Custody(
        "k", "4c4b6a3be1314ab86138bef4314dde022e600960d8689a2c8f8631802d20dab6", 8,
        "image/png", "out.bin",
    )  # fmt: skip
    told = await take(tmp_path, httpx.Response(200, headers=text, stream=Raw(b"a")), plain)
    assert (told.media_type, told.name, told.status) == ("text/x-log", "log", "stored")
    declared = await take(tmp_path, httpx.Response(200, headers=text, stream=Raw(b"a")))
    assert declared.media_type == "text/css"
    named = Source("https://files.example/a/out.csv?x=.png")
    assert (
        await take(tmp_path, httpx.Response(200, stream=Raw(b"a")), named)
    ).media_type == "text/csv"


async def test_a_compressed_body_is_not_what_its_header_declares(tmp_path: Path) -> None:
    headers = {"content-type": "text/css", "content-encoding": "br"}
    kept = await take(tmp_path, httpx.Response(200, headers=headers, stream=Raw(b"\x0b\x02")))
    assert (kept.media_type, kept.size) == ("application/octet-stream", 2)


async def test_nothing_of_the_client_is_sent_along(tmp_path: Path) -> None:
    seen = list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=Raw(b"a"))

    async with httpx.AsyncClient(
        transport=httpx.MockTransport(answer),
        headers={"Authorization": "Bearer secret", "X-Key": "secret"},
        cookies={"session": "secret"},
        auth=("user", "secret"),
        params={"key": "secret"},
        follow_redirects=True,
    ) as client:
        source = Source("https://files.example/a?b=c%2Fd")
        await collect(
            source, FolderStore(tmp_path), client, key="k", max_bytes=9, allowed_hosts=None
        )
    assert dict(seen[0].headers) == {
        "host": "files.example",
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": "agentflow",
    }
    assert str(seen[0].url) == source.url


async def test_a_client_that_follows_redirects_does_not_here(tmp_path: Path) -> None:
    requests = list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(302, headers={"location": "http://169.254.169.254/"})

    mock = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=mock, follow_redirects=True) as client:
        with pytest.raises(SourceRefused, match="redirects"):
            await collect(
                Source("https://files.example/a"),
                FolderStore(tmp_path),
                client,
                key="k",
                max_bytes=9,
                allowed_hosts=None,
            )
    assert len(requests) == 1


@pytest.mark.parametrize("status", [200, 404])
async def test_the_connection_is_given_back_whatever_the_answer(
    tmp_path: Path, status: int
) -> None:
    body = Raw(b"x" * 101)
    with pytest.raises((SourceRefused, SourceGone)):
        await take(tmp_path, httpx.Response(status, stream=body))
    assert body.closed


async def test_a_data_url_is_collected_and_capped(tmp_path: Path) -> None:
    kept = await take(tmp_path, None, Source("data:text/plain,abc", name="a/b.txt"))
    assert (kept.media_type, kept.name, kept.size) == ("text/plain", "b.txt", 3)
    with pytest.raises(SourceRefused):
        await take(tmp_path, None, Source("data:," + "a" * 101))


async def test_no_message_shows_the_path_or_query(tmp_path: Path) -> None:
    source = Source("https://files.example/secret/a?signature=secret")
    for response in [httpx.Response(404), httpx.Response(302, headers={"location": "/secret"}),
                     httpx.Response(503), httpx.Response(200, stream=Raw(b"a" * 101)),
                     httpx.ReadError("no")]:  # fmt: skip
        with pytest.raises((SourceGone, SourceRefused, SourceUnavailable)) as caught:
            await take(tmp_path, response, source)
        assert "secret" not in str(caught.value)
    assert "secret" not in repr(source)


@pytest.mark.parametrize(
    "url",
    ["", "files.example/a", "//files.example/a", "file:///etc/passwd", "ftp://files.example/a",
     "http://", "http:///a", "https://user:pass@files.example/", "https://user@files.example/",
     "http://[::1/", "http://a..b/", "http://a b/", "http://\n/", "http://%31/", "javascript:1",
     "http://\uff11\uff12\uff17.0.0.1/"],
)  # fmt: skip
def test_what_is_no_file_url_is_refused(url: str) -> None:
    with pytest.raises(SourceRefused):
        checked_url(url, None)


@pytest.mark.parametrize(
    "host",
    ["replicate.delivery", "REPLICATE.Delivery.", "a.pbxt.replicate.delivery", "bücher.example",
     "xn--bcher-kva.example", "127.0.0.1:8080", "[::1]"],
)  # fmt: skip
def test_an_allowed_host_may_be_written_in_any_way(host: str) -> None:
    allowed = ["Replicate.delivery", "*.replicate.DELIVERY", "Bücher.example", "127.0.0.1", "::1"]
    checked_url(f"https://{host}/a", allowed)


@pytest.mark.parametrize(
    "host",
    ["evilreplicate.delivery", "replicate.delivery.evil.example", "replicate.delivery",
     "evil.example#.replicate.delivery", "evil.example?.replicate.delivery",
     "evil.example\\.replicate.delivery", "a@replicate.delivery", "replicate.delivery:x@evil.test"],
)  # fmt: skip
def test_a_host_beside_the_pattern_is_refused(host: str) -> None:
    with pytest.raises(SourceRefused):
        checked_url(f"https://{host}/a", ["*.replicate.delivery"])


def test_no_allowed_host_allows_none() -> None:
    with pytest.raises(SourceRefused):
        checked_url("https://files.example/", [])


@pytest.mark.parametrize("pattern", ["*", "*.", "", "a.*.b", "https://a.example", "a.example:80"])
def test_a_pattern_that_is_none_is_a_setting_to_mend(pattern: str) -> None:
    with pytest.raises(SettingsError, match="Write files"):
        checked_url("https://files.example/", [pattern])
