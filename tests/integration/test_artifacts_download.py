"""Custody over real sockets: a server on loopback that misbehaves in every way it can."""

import asyncio
import gzip
import hashlib
import shutil
import ssl
import subprocess
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentflow.artifacts import (
    AddressRefused,
    Custody,
    FolderStore,
    Source,
    SourceGone,
    SourceRefused,
    SourceUnavailable,
    collect,
    guarded_client,
)

DATABASES = ()
MB = 1024 * 1024
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4000

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """Answers every request by `answer`, which writes raw HTTP; counts what came."""

    answer: Answer
    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = "/out/image.png?signature=s", host: str | None = None) -> str:
        return f"http://{host or '127.0.0.1'}:{self.port}{path}"

    async def untouched(self) -> bool:
        """Whether nobody connected; a connection is seen a little after it is made."""
        await asyncio.sleep(0.05)
        return self.connections == 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                await self.answer(writer)
                await writer.drain()
                if writer.is_closing():
                    break
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(answer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        await listening.wait_closed()


def head(status: str = "200 OK", /, **headers: object) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def sends(*parts: bytes, close: bool = False, pause: float = 0.0) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        if close:
            writer.close()

    return answer


def whole(content: bytes, **headers: object) -> Answer:
    return sends(head(content_length=len(content), **headers), content)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def answers(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolver


async def take(
    server: Server,
    root: Path,
    *,
    url: str | None = None,
    client: httpx.AsyncClient | None = None,
    **options: Any,
) -> Custody:
    limits = {"key": "job_1/0", "max_bytes": 2 * MB, "allowed_hosts": None, **options}
    async with client or guarded_client([server.address]) as client:
        return await collect(Source(url or server.url()), FolderStore(root), client, **limits)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_file_is_copied_whole_and_described(tmp_path: Path) -> None:
    async with serving(whole(PNG, content_type="application/octet-stream")) as server:
        kept = await take(server, tmp_path)
    digest = hashlib.sha256(PNG).hexdigest()
    assert kept == Custody("job_1/0", digest, len(PNG), "image/png", "image.png")
    assert (tmp_path / "job_1/0").read_bytes() == PNG
    assert files(tmp_path) == ["job_1/0"]


async def test_the_request_names_the_host_and_carries_no_secret(tmp_path: Path) -> None:
    async with serving(whole(b"a", set_cookie="session=1; Path=/")) as server:
        for _ in range(2):
            url = server.url("/a%2Fb?c=%20")
            await take(server, tmp_path, url=url, allowed_hosts=["127.0.0.1"])
    assert server.requests[0] == server.requests[1]
    assert server.requests[0].decode().lower().splitlines() == [
        "get /a%2fb?c=%20 http/1.1",
        f"host: {server.address}",
        "accept: */*",
        "accept-encoding: identity",
        "user-agent: agentflow",
        "",
    ]


async def test_the_client_keeps_no_cookie() -> None:
    async with (
        serving(whole(b"a", set_cookie="session=1; Path=/")) as server,
        guarded_client([server.address]) as client,
    ):
        await client.get(server.url())
        await client.get(server.url())
    assert b"cookie" not in server.requests[1].lower()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0", "127.1"]
)
async def test_a_loopback_server_gets_no_connection_unless_allowed(
    tmp_path: Path, host: str
) -> None:
    async with serving(whole(b"a")) as server:
        with pytest.raises(AddressRefused):
            await take(server, tmp_path, url=server.url(host=host), client=guarded_client())
        assert await server.untouched()


@pytest.mark.parametrize(
    "dns", [("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8"), ("127.0.0.1",), ("::1", "8.8.8.8")]
)
async def test_a_name_with_a_private_address_gets_no_connection(
    tmp_path: Path, dns: Sequence[str]
) -> None:
    async with serving(whole(b"a")) as server:
        client = guarded_client([server.address], resolver=answers(*dns))
        with pytest.raises(AddressRefused):
            await take(server, tmp_path, url=server.url(host="files.example"), client=client)
        assert await server.untouched()


async def test_an_allowed_name_is_reached_at_its_address(tmp_path: Path) -> None:
    async with serving(whole(b"a")) as server:
        allow = [f"files.example:{server.port}"]
        async with guarded_client(allow, resolver=answers("127.0.0.1")) as client:
            response = await client.get(server.url(host="files.example"))
        assert response.content == b"a"
        assert f"Host: files.example:{server.port}".encode() in server.requests[0]


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest/meta-data/", "/other", "file:///etc/passwd"]
)
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_refused_and_not_followed(
    tmp_path: Path, location: str, status: str
) -> None:
    async with serving(sends(head(status, location=location, content_length=0))) as server:
        with pytest.raises(SourceRefused, match="redirects"):
            await take(server, tmp_path)
        assert len(server.requests) == 1
    assert files(tmp_path) == []


async def test_a_host_that_is_not_listed_gets_no_connection(tmp_path: Path) -> None:
    async with serving(whole(b"a")) as server:
        with pytest.raises(SourceRefused, match="not a host that files"):
            await take(server, tmp_path, allowed_hosts=["*.replicate.delivery"])
        assert await server.untouched()


async def test_an_expired_file_is_gone_and_the_copy_stays(tmp_path: Path) -> None:
    async with serving(whole(PNG)) as server:
        await take(server, tmp_path)
        server.answer = sends(head("404 Not Found", content_length=0))
        with pytest.raises(SourceGone):
            await take(server, tmp_path)
    assert (tmp_path / "job_1/0").read_bytes() == PNG


async def test_a_throttled_download_says_how_long_to_wait(tmp_path: Path) -> None:
    throttled = sends(head("429 Slow", retry_after=30, content_length=0))
    async with serving(throttled) as server:
        with pytest.raises(SourceUnavailable) as caught:
            await take(server, tmp_path)
    assert caught.value.retry_after == 30


async def test_an_announced_oversize_is_refused_before_its_body(tmp_path: Path) -> None:
    async with serving(sends(head(content_length=2 * MB + 1))) as server:
        with pytest.raises(SourceRefused, match="more than"):
            await take(server, tmp_path, idle_timeout=5)
    assert files(tmp_path) == []


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_unannounced_oversize_is_refused_while_it_streams(
    tmp_path: Path, chunked: bool
) -> None:
    """The server never ends: only counting can."""

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(head(transfer_encoding="chunked") if chunked else head(connection="close"))
        while True:
            writer.write(chunk(bytes(MB)) if chunked else bytes(MB))
            await writer.drain()

    async with serving(endless) as server:
        with pytest.raises(SourceRefused, match="more than"):
            await take(server, tmp_path, total_timeout=30)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "parts",
    [
        (head(content_length=1000), b"x" * 999),
        (head(content_length=1000),),
        (head(transfer_encoding="chunked"), chunk(b"x" * 1000)),
        (head(transfer_encoding="chunked"), b"3e8\r\n" + b"x" * 10),
        (head(transfer_encoding="chunked"), b"not a length\r\n"),
        (b"HTTP/1.1 200 O",),
        (b"SSH-2.0-OpenSSH_9.6\r\n",),
        (),
    ],
)
async def test_a_torn_transfer_is_unavailable_and_never_stored(
    tmp_path: Path, parts: tuple[bytes, ...]
) -> None:
    async with serving(sends(*parts, close=True)) as server:
        with pytest.raises(SourceUnavailable):
            await take(server, tmp_path)
    assert files(tmp_path) == []


async def test_a_reset_connection_is_unavailable(tmp_path: Path) -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        writer.write(head(content_length=MB) + b"x" * 1000)
        await writer.drain()
        writer.transport.abort()

    async with serving(reset) as server:
        with pytest.raises(SourceUnavailable):
            await take(server, tmp_path)
    assert files(tmp_path) == []


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with serving(whole(b"a")) as server:
        pass
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1"):
        await take(server, tmp_path)


@pytest.mark.parametrize("parts", [(), (head(content_length=1000), b"x" * 999)])
async def test_a_silence_ends_after_the_idle_time(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    async with serving(silent_after(*parts)) as server:
        with pytest.raises(SourceUnavailable, match="silent"):
            await take(server, tmp_path, idle_timeout=0.2)
    assert files(tmp_path) == []


def silent_after(*parts: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.writelines(parts)
        await writer.drain()
        await asyncio.sleep(60)

    return answer


async def test_a_trickle_ends_after_the_total_time(tmp_path: Path) -> None:
    drops = [b"x"] * 1000
    async with serving(sends(head(content_length=1000), *drops, pause=0.02)) as server:
        with pytest.raises(SourceUnavailable, match=r"did not arrive in 0\.5 s"):
            await take(server, tmp_path, idle_timeout=5, total_timeout=0.5)
    assert files(tmp_path) == []


async def test_a_slow_body_within_its_time_is_stored(tmp_path: Path) -> None:
    parts = [PNG[start : start + 100_000] for start in range(0, len(PNG), 100_000)]
    async with serving(sends(head(content_length=len(PNG)), *parts, pause=0.02)) as server:
        kept = await take(server, tmp_path, idle_timeout=1)
    assert kept.sha256 == hashlib.sha256(PNG).hexdigest()


async def test_a_gzip_bomb_does_not_expand(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50 * MB))
    assert len(bomb) < MB
    async with serving(whole(bomb, content_encoding="gzip", content_type="image/png")) as server:
        kept = await take(server, tmp_path, max_bytes=len(bomb))
    assert (kept.size, kept.media_type) == (len(bomb), "application/gzip")
    assert zlib.crc32((tmp_path / "job_1/0").read_bytes()) == zlib.crc32(bomb)


async def test_many_downloads_of_one_key_leave_one_whole_file(tmp_path: Path) -> None:
    async with serving(whole(PNG)) as server:
        kept = await asyncio.gather(*(take(server, tmp_path) for _ in range(10)))
    assert len({each.sha256 for each in kept}) == 1
    assert (tmp_path / "job_1/0").read_bytes() == PNG
    assert files(tmp_path) == ["job_1/0"]


async def test_a_canceled_download_leaves_nothing_behind(tmp_path: Path) -> None:
    async with serving(silent_after(head(content_length=MB), bytes(MB // 2))) as server:
        download = asyncio.create_task(take(server, tmp_path))
        while not any(path.stat().st_size for path in tmp_path.rglob(".put-*")):
            await asyncio.sleep(0.01)
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        assert files(tmp_path) == []
        server.answer = whole(PNG)
        await take(server, tmp_path)
    assert files(tmp_path) == ["job_1/0"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for files.example, made here so that no key is kept in the tree."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs the openssl command")
    made = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=files.example",
         "-addext", "subjectAltName=DNS:files.example",
         "-keyout", made / "key.pem", "-out", made / "cert.pem"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return made


@pytest.mark.parametrize("host", ["files.example", "other.example"])
async def test_tls_checks_the_name_though_the_address_is_pinned(
    certificate: Path, host: str
) -> None:
    here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    here.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    trust = ssl.create_default_context(cafile=certificate / "cert.pem")
    async with serving(whole(b"a"), here) as server:
        allow = [f"{host}:{server.port}"]
        resolver = answers("127.0.0.1")
        async with guarded_client(allow, resolver=resolver, verify=trust) as client:
            url = server.url(host=host).replace("http:", "https:")
            if host == "files.example":
                assert (await client.get(url)).content == b"a"
            else:
                with pytest.raises(httpx.ConnectError, match="certificate"):
                    await client.get(url)
