"""A provider on loopback to test against: real HTTP, real signatures, and faults on demand.

    async with AcmeSimulator().serve() as sim:      # in this event loop
        sim.faults.update(drop=0.05, reset=1)       # one webhook in twenty; the next create
        ...                                         # use sim.url
        assert sim.stats.created["token"] == 1

A subclass gives the provider's routes and its way to sign. `POST /_faults` sets faults over HTTP
(`DELETE` clears them), `GET /_stats` shows the counters.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, Self

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agentflow.testing.faults import FAULTS, Fault, Faults, Hit, Stats
from agentflow.testing.sender import RETRIES, Outbox, Sender
from agentflow.testing.serving import served
from agentflow.webhooks.signatures import new_secret, sign

__all__ = [
    "FAULTS",
    "HOST",
    "RETRIES",
    "Fault",
    "Faults",
    "Hit",
    "Json",
    "Outbox",
    "Simulator",
    "Stats",
    "Streamed",
]

HOST = "127.0.0.1"


class Json(Response):
    """`content` is anything orjson writes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class Reset(Response):
    """Closes the connection instead of answering, after `seconds` unless the client leaves."""

    def __init__(self, closing: asyncio.Event, seconds: float = 0.0) -> None:
        super().__init__()
        self.closing, self.seconds = closing, seconds

    async def __call__(self, scope: Scope, receive: Receive, _: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        await _over(self.seconds, gone, self.closing)
        scope["transport"].abort()
        await gone


class Slow(Response):
    """Another response, its body spread over `seconds`."""

    def __init__(
        self, response: Response, closing: asyncio.Event, seconds: float, pieces: int = 10
    ) -> None:
        super().__init__()
        self.response, self.closing = response, closing
        self.pause, self.pieces = seconds / pieces, pieces

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        body = bytes(self.response.body)
        await send(_start(self.response))
        size = len(body) // self.pieces + 1
        for start in range(0, len(body) or 1, size):
            await _over(self.pause, gone, self.closing)
            more = start + size < len(body)
            piece = body[start : start + size]
            await send({"type": "http.response.body", "body": piece, "more_body": more})
        gone.cancel()


class Streamed(Response):
    """Sends these pieces over `seconds`, in chunks of HTTP."""

    media_type = "text/event-stream"

    def __init__(self, pieces: Sequence[bytes], seconds: float = 0.0) -> None:
        super().__init__(b"".join(pieces))
        del self.headers["content-length"]
        self.pieces, self.pause = pieces, seconds / max(1, len(pieces))

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        await send(_start(self))
        for piece in self.pieces:
            await asyncio.wait([gone], timeout=self.pause)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})
        gone.cancel()


class Cut(Response):
    """Sends about half of another response and closes the connection."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytes(self.response.body)
        await send(_start(self.response))
        half = body[: len(body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        await asyncio.sleep(0.05)  # for it to be read before
        scope["transport"].abort()
        await _gone(receive)


def _start(response: Response) -> dict[str, Any]:
    status, headers = response.status_code, response.raw_headers
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _over(seconds: float, gone: asyncio.Future[None], closing: asyncio.Event) -> None:
    """Wait so long, or until nobody waits for the answer any more."""
    closed = asyncio.ensure_future(closing.wait())
    first: list[asyncio.Future[Any]] = [gone, closed]
    await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    closed.cancel()


class Simulator:
    """The base of every simulator. Use it within `serve()` or `serve_in_thread()`, once.

    `secret` signs the webhooks by Standard Webhooks; `retries` are the pauses in seconds between
    the tries of a last webhook; `seed` makes the faults repeatable.
    """

    def __init__(
        self,
        *,
        secret: str | None = None,
        retries: Sequence[float] = RETRIES,
        seed: int = 0,
    ) -> None:
        self.secret = secret or new_secret()
        self.faults, self.stats = Faults(seed=seed), Stats()
        self.sender = Sender(self.sign, self.faults, self.stats, retries)
        self.url = ""
        """`http://127.0.0.1:PORT`, from when it is served."""
        self.webhook_url: str | None = None
        """Where the webhooks of the account go, if the provider has one address for all."""
        self.complaint = "A fault was asked for."
        """What a simulated error says."""
        self._other_secret = new_secret()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def routes(self) -> Sequence[BaseRoute]:
        """The provider's own routes."""
        return ()

    def env(self) -> dict[str, str]:
        """The variables of the plugin's settings that lead here."""
        return {}

    def forget(self) -> None:
        """Drop every result, as the provider does when its time is up."""
        raise NotImplementedError

    def sign(self, delivery_id: str, sent_at: datetime, body: bytes, forged: bool) -> Any:
        """The headers of a webhook; Standard Webhooks unless a subclass knows better."""
        return sign(self._other_secret if forged else self.secret, delivery_id, sent_at, body)

    def problem(self, status: int, title: str, detail: str, **more: Any) -> Response:
        """An error as the provider writes it; `more` are members of the body."""
        return Json({"title": title, "detail": detail, "status": status, **more}, status)

    def throttled(self, seconds: float) -> Response:
        """429 as the provider says it."""
        response = self.problem(429, "Too many requests", f"Try again in {seconds} s.")
        response.headers["retry-after"] = f"{seconds:g}"
        return response

    def hit(self, name: str) -> bool:
        """Whether this fault happens now, by the settings for everybody."""
        return self.played(name, self.faults.hit(name))

    def played(self, name: str, happens: bool) -> bool:
        if happens:
            self.stats.faults[name] += 1
        return happens

    async def faulty(self, create: Callable[[], Awaitable[Response]], hit: Hit) -> Response:
        """The answer to a create, with the faults that a call can meet around its effect.

        `stats.counts["asked"]` counts them, whatever becomes of them.
        """
        self.stats.counts["asked"] += 1
        if hit("rate_limit"):
            return self.throttled(self.faults.rate_limit_seconds)
        if hit("error_before"):
            return self._error()
        response = await create()
        if response.status_code >= 400:
            return response
        if hit("error_after"):
            return self._error()
        if hit("reset"):
            return Reset(self._closing)
        if hit("hang"):
            return Reset(self._closing, self.faults.hang_seconds)
        if hit("cut_body"):
            return Cut(response)
        if hit("slow_body"):
            return Slow(response, self._closing, self.faults.slow_seconds)
        return response

    def _error(self) -> Response:
        return self.problem(self.faults.error_status, "Simulated error", self.complaint)

    def outbox(self, url: str, hit: Hit) -> Outbox:
        """Where the webhooks of one piece of work are posted."""
        return Outbox(self.sender, self.spawn, url, hit)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something until it is done or the simulator closes."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def app(self) -> ASGIApp:
        control = [
            Route("/_faults", self._set_faults, methods=["GET", "POST", "DELETE"]),
            Route("/_stats", self._show_stats),
        ]
        return _Counted(Starlette(routes=[*control, *self.routes()]), self.stats)

    async def _set_faults(self, request: Request) -> Response:
        try:
            if request.method == "POST":
                given = orjson.loads(await request.body())
                if not isinstance(given, dict):
                    raise ValueError('faults are an object: {"drop": 0.1}')
                self.faults.update(given)
        except ValueError as error:
            return Json({"title": "Bad faults", "detail": str(error), "status": 422}, 422)
        if request.method == "DELETE":
            self.faults.clear()
        return Json(self.faults.dump())

    async def _show_stats(self, _: Request) -> Response:
        return Json(self.stats.dump())

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Self]:
        """Serve on loopback in the running event loop; port 0 takes a free one."""
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            async with served(_config(self.app()), listener):
                self.url = f"http://{HOST}:{listener.getsockname()[1]}"
                try:
                    yield self
                finally:
                    await self._close()

    async def _close(self) -> None:
        self._closing.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.sender.aclose()

    @contextmanager
    def serve_in_thread(self, port: int = 0) -> Iterator[Self]:
        """The same for code without an event loop."""
        ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def main() -> None:
            stop = asyncio.Event()
            async with self.serve(port):
                ready.set_result((asyncio.get_running_loop(), stop))
                await stop.wait()

        def run() -> None:
            try:
                asyncio.run(main())
            except Exception as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        thread = threading.Thread(target=run, name="simulator", daemon=True)
        thread.start()
        loop, stop = ready.result()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


def _config(app: ASGIApp) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        log_config=None,
        lifespan="off",
        ws="none",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    # Said to the constructor, it would silence the access log of every server in the process.
    config.access_log = False
    return config


class _Counted:
    """Counts the requests, and hands the connection to `Reset`: ASGI has no word for hanging up."""

    def __init__(self, app: ASGIApp, stats: Stats) -> None:
        self.app, self.stats = app, stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        if not scope["path"].startswith("/_"):
            self.stats.counts["requests"] += 1
            target = scope["raw_path"] + b"?" + scope["query_string"]
            self.stats.targets.append(target.decode("latin-1"))
        await self.app(scope, receive, send)
