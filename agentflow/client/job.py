"""A job seen from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self, TypeVar

from agentflow.client.errors import Error, JobFailed, JobTimeout
from agentflow.client.wire import FINAL, Wire, place

LONGEST_WAIT = 30.0
"""Seconds one request waits for the end of a job."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """What a job came to. Each of `artifacts` has `id`, `name`, `media_type`, `size`, `status`."""

    output: Any = None
    text: str | None = None
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's history. `status` is the job's after it; `progress` lies in 0..1."""

    seq: int
    event: str
    source: str
    disposition: str
    reason: str
    status: str
    at: datetime
    said: dict[str, Any]
    progress: float | None = None
    message: str | None = None

    @classmethod
    def read(cls, data: dict[str, Any]) -> Event:
        """From the entry's JSON."""
        progress = data.get("progress") or {}
        told = {"progress": progress.get("fraction"), "message": progress.get("message")}
        return _read(cls, {**data, **told, "at": datetime.fromisoformat(data["at"])})


class Job:
    """A job at the server; `data` is the job as the API showed it last."""

    def __init__(self, wire: Wire, data: dict[str, Any]) -> None:
        self._wire, self.data = wire, data
        self.id: str = data["id"]
        self._path = place("/v1/jobs", self.id)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.status}>"

    @property
    def status(self) -> str:
        return str(self.data["status"])

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def error(self) -> Error | None:
        said = self.data["error"]
        return _read(Error, said) if said else None

    def refresh(self, wait: float = 0.0) -> Self:
        """Read it again; with `wait`, at its end or after so many seconds (the server may cut)."""
        params = {"wait": wait} if wait else None
        self.data = self._wire.get(self._path, params, wait)
        return self

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end, at most `timeout` seconds. Raises `JobFailed` or `JobTimeout`."""
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not self.final:
            left = until - time.monotonic()
            if left < 0:
                raise JobTimeout(f"Job {self.id} is still {self.status} after {timeout} seconds")
            self.refresh(min(left, LONGEST_WAIT))
        if self.status != "succeeded":
            raise JobFailed(self.id, self.status, self.error)
        return _read(Result, self.data["result"])

    def events(self, after: int = -1) -> Iterator[Event]:
        """Entries above `after`, those there are and those to come, until the job is final.

        A stream that breaks is taken up where it broke. Raises `ServerUnreachable`.
        """
        return map(Event.read, self._wire.follow(self._path, after))

    def history(self) -> list[Event]:
        """The entries so far, also those that came after the end."""
        entries = self._wire.items(f"{self._path}/events", {}, cursor="after")
        return [Event.read(entry) for entry in entries]

    def cancel(self) -> Self:
        """Ask for its end; what comes of it shows in `status`."""
        self.data = self._wire.post(f"{self._path}/cancel", repeatable=True)
        return self

    def retry(self) -> Job:
        """Submit a final job again, as a new one."""
        return Job(self._wire, self._wire.post(f"{self._path}/retry"))


def _read(cls: type[T], data: dict[str, Any]) -> T:
    """What the class knows of the data: a newer server may say more."""
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # called with dataclasses
    return cls(**{k: v for k, v in data.items() if k in known})
