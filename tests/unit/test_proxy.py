"""The proxy that cuts links, between a client and a server that says everything again."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.patience import PATIENCE
from support.proxy import AT_ONCE, Proxy, ThreadedProxy
from support.servers import free_port

SILENCE = 0.05  # seconds in which loopback would long have answered


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Its port."""

    async def again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while said := await reader.read(65536):
                writer.write(said)
                await writer.drain()
        except ConnectionResetError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(again, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, what: bytes) -> None:
        self.writer.write(what)

    async def hear(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(count)

    async def hears_nothing(self) -> bool:
        """Not even an end."""
        try:
            async with asyncio.timeout(SILENCE):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Proxy, Client]]:
    """A client that has been answered through the proxy."""
    async with echo() as port, Proxy("127.0.0.1", port) as proxy, client(proxy.port) as one:
        one.say(b"hello")
        assert await one.hear(5) == b"hello"
        yield proxy, one


async def test_connections_and_bytes_are_counted() -> None:
    async with linked() as (proxy, _), client(proxy.port) as other:
        other.say(b"more")
        assert await other.hear(4) == b"more"
        assert (proxy.connections, proxy.open) == (2, 2)
        assert (proxy.sent, proxy.received) == (9, 9)


async def test_much_arrives_whole_and_in_order() -> None:
    much = bytes(range(256)) * 8192
    async with linked() as (_, one):
        one.say(much)
        assert await one.hear(len(much)) == much


async def test_an_end_is_an_end_on_the_other_side() -> None:
    async with linked() as (proxy, one):
        one.say(b"last")
        one.writer.write_eof()
        assert await one.hear(4) == b"last"
        assert await one.reader.read() == b""
        async with asyncio.timeout(PATIENCE):
            while proxy.open:
                await asyncio.sleep(0.001)


async def test_reset_ends_what_there_is_and_refuses_the_new() -> None:
    async with linked() as (proxy, one):
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await one.hear(1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        assert proxy.open == 0


async def test_healed_it_serves_on_the_same_port() -> None:
    async with linked() as (proxy, _):
        port = proxy.port
        proxy.cut()
        proxy.heal()
        async with client(port) as other:
            other.say(b"again")
            assert await other.hear(5) == b"again"


async def test_a_black_hole_is_silent_and_loses_nothing() -> None:
    async with linked() as (proxy, one):
        proxy.cut("blackhole")
        async with client(proxy.port) as new:
            one.say(b"old")
            new.say(b"new")
            assert await one.hears_nothing()
            assert await new.hears_nothing()
            assert proxy.sent == 5
            proxy.heal()
            assert await one.hear(3) == b"old"
            assert await new.hear(3) == b"new"


async def test_a_reset_reaches_those_in_the_black_hole() -> None:
    async with linked() as (proxy, one):
        proxy.cut("blackhole")
        proxy.cut("reset")
        with pytest.raises(ConnectionResetError):
            await one.hear(1)


@pytest.mark.parametrize("breaks", [False, True])
async def test_the_targets_end_is_not_heard_from_the_black_hole(breaks: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        async with Proxy("127.0.0.1", port) as proxy, client(proxy.port) as one:
            target, _ = await asyncio.to_thread(listening.accept)
            proxy.cut("blackhole")
            if breaks:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            target.close()
            assert await one.hears_nothing()
            proxy.heal()
            with pytest.raises(ConnectionResetError if breaks else asyncio.IncompleteReadError):
                await one.hear(1)


async def test_a_target_that_is_away_resets_the_client() -> None:
    async with Proxy("127.0.0.1", free_port()) as proxy, client(proxy.port) as one:
        with pytest.raises(ConnectionResetError):
            await one.hear(1)


async def test_latency_holds_both_ways() -> None:
    async with linked() as (proxy, one):
        proxy.latency = 0.03
        started = time.monotonic()
        one.say(b"x")
        assert await one.hear(1) == b"x"
        assert time.monotonic() - started >= 0.06


async def test_leaving_resets_whoever_is_there() -> None:
    async with echo() as port:
        async with Proxy("127.0.0.1", port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"x")
            await reader.readexactly(1)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


def test_a_thread_serves_a_test_that_blocks() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as target,
        ThreadedProxy("127.0.0.1", target.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), 5) as one,
    ):
        far, _ = target.accept()
        with far:
            one.sendall(b"hello")
            assert far.recv(5) == b"hello"
            proxy.cut("blackhole")
            one.sendall(b"later")
            proxy.heal()
            assert far.recv(5) == b"later"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        assert (proxy.connections, proxy.sent) == (1, 10)
    assert not proxy._thread.is_alive()
