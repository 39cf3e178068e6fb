"""A job seen from outside, blocking and asynchronous."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Self, TypeAlias

from agentflow.client import routes
from agentflow.client.answers import FINAL, Delta, Event, Result, known
from agentflow.client.errors import Error, JobFailed, JobTimeout
from agentflow.client.transport import finish, walk
from agentflow.client.wire import Wire

LONGEST_WAIT = 30.0
"""Seconds one request waits for the end of a job."""

NEWS = 1.0
"""Seconds one request waits while somebody wants to hear of progress."""

EAGER = 0.5
"""Seconds between two questions to a server that does not wait."""

OnProgress: TypeAlias = Callable[[float | None, str | None], object]
"""Called with the fraction (0..1) and the message, each None until known."""

_News: TypeAlias = tuple[float | None, str | None]


class JobView:
    """What both kinds of job have. `data` is the job as the API showed it last."""

    def __init__(self, wire: Wire, data: dict[str, Any]) -> None:
        self._wire, self.data = wire, data
        self.id: str = data["id"]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}>"

    @property
    def status(self) -> str:
        return str(self.data["status"])

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def error(self) -> Error | None:
        said = self.data.get("error")
        return known(Error, said) if said else None

    async def _read(self, wait: float = 0.0, until: float = float("inf")) -> Self:
        self.data = await self._wire.ask(routes.job(self.id, wait), until)
        return self

    async def _cancel(self) -> Self:
        self.data = await self._wire.ask(routes.cancel(self.id))
        return self

    async def _outcome(self, timeout: float | None, on_progress: OnProgress | None) -> Result:
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        longest = LONGEST_WAIT if on_progress is None else NEWS
        told = await _tell(on_progress, (None, None), self.data)
        while not self.final:
            left = max(0.0, until - time.monotonic())
            await self._look(min(left, longest), until)
            told = await _tell(on_progress, told, self.data)
            if time.monotonic() >= until and not self.final:
                raise JobTimeout(f"Job {self.id} is still {self.status} after {timeout} seconds")
        if "result" not in self.data:  # one of `submit_many`, final before
            await self._read()
        if self.status != "succeeded":
            raise JobFailed(self.id, self.status, self.error)
        return known(Result, self.data["result"])

    async def _look(self, wait: float, until: float) -> None:
        """Read the job when it is final or after `wait` seconds. A server that does not wait is
        not asked again at once."""
        began = time.monotonic()
        await self._read(wait, until)
        early = min(wait, EAGER) - (time.monotonic() - began)
        if early > 0 and not self.final:
            await self._wire.sleep(early)

    async def _events(self, after: int) -> AsyncGenerator[Event, None]:
        cursor = str(after) if after >= 0 else None
        async with aclosing(
            self._wire.live(routes.events(self.id, deltas=False), cursor)
        ) as messages:
            async for message in messages:
                event = Event.read(json.loads(message.data))
                yield event
                if event.ends:
                    return

    async def _stream(self, channel: str | None) -> AsyncGenerator[Delta, None]:
        """Where a break cut a message off from its id, what comes twice is given once."""
        heard: dict[tuple[int, str], int] = {}
        request = routes.events(self.id, deltas=True)
        async with aclosing(self._wire.live(request)) as messages:
            async for message in messages:
                said = json.loads(message.data)
                if message.event not in ("delta", "gap"):
                    if Event.read(said).ends:
                        return
                    continue
                delta = known(Delta, said)
                place = (delta.attempt, delta.channel)
                fresh = delta.behind(heard.get(place, 0))
                heard[place] = max(heard.get(place, 0), delta.end)
                if fresh is not None and channel in (None, fresh.channel):
                    yield fresh

    async def _history(self) -> list[Event]:
        entries = self._wire.items(routes.history(self.id), cursor="after")
        return [Event.read(entry) async for entry in entries]


class Job(JobView):
    """A job at the server, for code that blocks."""

    def refresh(self, wait: float = 0.0) -> Self:
        """Read it again; with `wait`, at its end or after so many seconds (the server may cut)."""
        return finish(self._read(wait))

    def result(
        self, timeout: float | None = None, *, on_progress: OnProgress | None = None
    ) -> Result:
        """Wait for the end, at most `timeout` seconds. Raises `JobFailed` or `JobTimeout`.

        It asks by bounded long polls, with `on_progress` every second: what changes faster is
        told once, as it was last. `events` tells everything.
        """
        return finish(self._outcome(timeout, on_progress))

    def events(self, after: int = -1) -> Iterator[Event]:
        """Entries above `after`, those there are and those to come, until the job is final.

        A stream that breaks is taken up where it broke. Raises `ServerUnreachable`.
        """
        return walk(self._events(after))

    def stream(self, channel: str | None = "text") -> Iterator[Delta]:
        """What its calls say while they run, on the channel `text`, `logs` or, with None, both;
        from as far back as the server has it, until the job is final.

        It is stored nowhere and may have gaps (`Delta.missing`); `result` is the truth. Of a job
        that ended a while ago there is nothing. Raises `ServerUnreachable`.
        """
        return walk(self._stream(channel))

    def history(self) -> list[Event]:
        """The entries so far, also those that came after the end."""
        return finish(self._history())

    def cancel(self) -> Self:
        """Ask for its end; what comes of it shows in `status`."""
        return finish(self._cancel())

    def retry(self, *, idempotency_key: str | None = None) -> Job:
        """Submit a final job again, as a new one. A key is made up where none is given."""
        return Job(self._wire, finish(self._wire.ask(routes.retry(self.id, idempotency_key))))


class AsyncJob(JobView):
    """A job at the server, for code that awaits. The methods are those of `Job`."""

    async def refresh(self, wait: float = 0.0) -> Self:
        return await self._read(wait)

    async def result(
        self, timeout: float | None = None, *, on_progress: OnProgress | None = None
    ) -> Result:
        """`on_progress` may be a coroutine function."""
        return await self._outcome(timeout, on_progress)

    def events(self, after: int = -1) -> AsyncGenerator[Event, None]:
        """Who leaves the loop early closes the stream at once with `contextlib.aclosing`."""
        return self._events(after)

    def stream(self, channel: str | None = "text") -> AsyncGenerator[Delta, None]:
        return self._stream(channel)

    async def history(self) -> list[Event]:
        return await self._history()

    async def cancel(self) -> Self:
        return await self._cancel()

    async def retry(self, *, idempotency_key: str | None = None) -> AsyncJob:
        said = await self._wire.ask(routes.retry(self.id, idempotency_key))
        return AsyncJob(self._wire, said)


async def _tell(on_progress: OnProgress | None, told: _News, data: dict[str, Any]) -> _News:
    """Call it if the job has news."""
    progress = data.get("progress") or {}
    news = (progress.get("fraction"), progress.get("message"))
    if on_progress is not None and news != told:
        said = on_progress(*news)
        if inspect.isawaitable(said):
            await said
    return news
