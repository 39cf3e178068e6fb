"""The small HTTP client that simulators send webhooks with, against servers of every manner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agentflow.testing.poster import Poster

DATABASES = ()
OK = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request on a connection with the next of `answers`; None hangs up instead."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []
        self.url = ""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(size))
                answer = self.answers.pop(0) if self.answers else OK
                if answer is None:
                    break
                writer.write(answer)
                if b"ength" not in answer:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self


async def post(poster: Poster, server: Server) -> int:
    return await poster.post(f"{server.url}/hooks/t1?x=1", {"webhook-id": "m1"}, b'{"a": 1}')


async def test_a_connection_is_used_again() -> None:
    poster = Poster()
    async with Server().serve() as server:
        assert [await post(poster, server) for _ in range(3)] == [202] * 3
        assert server.connections == 1
        await poster.aclose()
    (request, *_) = server.requests
    assert request.startswith(b"POST /hooks/t1?x=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert request.endswith(b'\r\nwebhook-id: m1\r\ncontent-length: 8\r\n\r\n{"a": 1}')


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", 401),
        (b"HTTP/1.0 500 Oops\r\nConnection: close\r\n\r\nsome body", 500),
        (b"HTTP/1.1 204 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 204),
    ],
)
async def test_without_an_end_of_the_body_the_connection_is_given_up(
    answer: bytes, status: int
) -> None:
    poster = Poster()
    async with Server(answer).serve() as server:
        assert await post(poster, server) == status
        assert await post(poster, server) == 202
        assert server.connections == 2
        await poster.aclose()


async def test_a_kept_connection_that_closes_is_replaced() -> None:
    poster = Poster()
    async with Server(OK, None).serve() as server:
        assert await post(poster, server) == 202
        assert await post(poster, server) == 202
        assert server.connections == 2
        await poster.aclose()


@pytest.mark.parametrize(
    "answer",
    [None, b"nonsense\r\n\r\n", b"HTTP/1.1 2x2\r\nLength: 1\r\n\r\n", b"HTTP/1.1 " + b"x" * 99_999],
)
async def test_no_answer_is_an_error(answer: bytes | None) -> None:
    poster = Poster()
    async with Server(answer).serve() as server:
        with pytest.raises(OSError):
            await post(poster, server)
        await poster.aclose()
    with pytest.raises(OSError):
        await post(poster, server)


async def test_silence_is_an_error_in_time() -> None:
    poster = Poster(timeout=0.05)
    async with Server(b"length but nothing else").serve() as server:
        with pytest.raises(TimeoutError):
            await post(poster, server)
