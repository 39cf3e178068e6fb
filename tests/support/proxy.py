"""A TCP proxy on loopback, to cut the link between two processes and to mend it."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Self

from support.servers import free_port

Cut = Literal["reset", "blackhole"]
Way = Literal["sent", "received"]
CHUNK = 65536
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST and forgets what is unsent


class Proxy:
    """Listens on `port` of 127.0.0.1 inside `async with`, and forwards to the target.

    `latency`: seconds each chunk of at most 64 KiB is held back, in either direction.
    `connections` counts all there were and `open` those there are; `sent` and `received` are
    the bytes forwarded to the target and from it.
    """

    def __init__(self, host: str, port: int, *, latency: float = 0.0) -> None:
        self.target = (host, port)
        self.latency = latency
        self.port = free_port()
        self.connections = self.sent = self.received = 0
        self._links: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._flowing = asyncio.Event()

    @property
    def open(self) -> int:
        return len(self._links)

    def cut(self, mode: Cut = "reset") -> None:
        """`reset`: connections are reset and new ones refused, as if the target's process died.

        `blackhole`: connections old and new stay silent, as in a network that drops packets;
        what is sent meanwhile arrives after `heal`.
        """
        self._flowing.clear()
        if mode == "reset":
            self._refuse()
            for link in self._links:
                link.cancel()
        else:
            self._listen()

    def heal(self) -> None:
        self._listen()
        self._flowing.set()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _refuse(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            connection, _ = listener.accept()
            self.connections += 1
            link = asyncio.create_task(self._link(connection))
            self._links.add(link)
            link.add_done_callback(self._links.discard)
            link.add_done_callback(lambda _: connection.close())  # if it never began

    async def _link(self, connection: socket.socket) -> None:
        """Both ways until both have ended; when one breaks, the other is reset."""
        ends: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            ends.append(writer)
            await self._flowing.wait()
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            ends.append(far_writer)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._forward(reader, far_writer, "sent"))
                ways.create_task(self._forward(far_reader, writer, "received"))
            for end in ends:
                end.close()
                await end.wait_closed()
        except* OSError:
            await self._flowing.wait()  # such news, too, waits in the black hole
        finally:
            for end in ends:
                _reset(end)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        while chunk := await reader.read(CHUNK):
            await asyncio.sleep(self.latency)
            await self._flowing.wait()
            writer.write(chunk)
            setattr(self, way, getattr(self, way) + len(chunk))
            await writer.drain()
        await self._flowing.wait()
        writer.write_eof()

    async def __aenter__(self) -> Self:
        self.heal()
        return self

    async def __aexit__(self, *exc: object) -> None:
        links = set(self._links)
        self.cut()
        while links:  # one that breaks while it is cancelled waits for better times
            _, links = await asyncio.wait(links, timeout=0.2)
            for link in links:
                link.cancel()
        await asyncio.sleep(0)  # for the transports to let go of their sockets


def _reset(end: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # it is closed
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    end.transport.abort()


class ThreadedProxy:
    """A `Proxy` in a thread of its own, for tests that block: `with` instead of `async with`."""

    def __init__(self, host: str, port: int, *, latency: float = 0.0) -> None:
        self._proxy = Proxy(host, port, latency=latency)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proxy, name)

    def cut(self, mode: Cut = "reset") -> None:
        self._do(partial(self._proxy.cut, mode))

    def heal(self) -> None:
        self._do(self._proxy.heal)

    def _do(self, what: Callable[[], object]) -> None:
        """In the thread, and wait for it."""

        async def there() -> None:
            done = what()
            if inspect.isawaitable(done):
                await done

        asyncio.run_coroutine_threadsafe(there(), self._loop).result(10)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._do(self._proxy.__aenter__)
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(partial(self._proxy.__aexit__, *exc))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
