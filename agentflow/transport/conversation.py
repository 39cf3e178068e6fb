"""What a worker and the writer say to each other, whatever carries it.

The worker claims, reports and beats; the writer answers each claim and each report after its
commit. The same nonce or envelope id is answered the same again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from agentflow.core.events import Envelope
from agentflow.types import DEFAULT_TENANT, JobId, Json, Token


@dataclass(frozen=True, slots=True)
class Message:
    """What the broker carries for one attempt."""

    job_id: JobId
    attempt: int
    token: Token
    task: str
    input: Json
    deadline: datetime
    priority: int = 0
    trace: str | None = None
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Claim:
    """May I make this attempt's call, with the key of this `account`? `nonce` is new for every
    asking."""

    job_id: JobId
    attempt: int
    nonce: str
    worker: str
    task: str = ""
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """Committed: this asking, and no other, makes the call. Durations are in seconds."""

    timeout: float
    deadline: datetime
    webhooks: bool


@dataclass(frozen=True, slots=True)
class Denied:
    reason: str


@dataclass(frozen=True, slots=True)
class Chore:
    """Work on a job that is harmless to repeat: fetch, find, cancel, collect, stop.

    `since` is when the attempt's call was granted; `result` travels with `collect` alone.
    """

    kind: str
    job_id: JobId
    attempt: int
    token: Token
    task: str
    tenant: str
    external_id: str | None
    since: datetime
    deadline: datetime
    artifacts: Sequence[Mapping[str, Any]] = ()
    worker: str | None = None
    """Who holds the attempt: the one to tell for `stop`."""
    trace: str | None = None
    account: str | None = None
    """Whose work it is at the provider: the attempt's."""
    strays: Sequence[str] = ()
    """For `find`: external ids that webhooks of the provider named and no attempt has."""
    input: Json = None
    """For `fetch`, `find` and `cancel` of a task that asks for it: the job's."""


@dataclass(frozen=True, slots=True)
class Beat:
    """This worker lives, and so do these attempts."""

    worker: str
    attempts: Sequence[tuple[JobId, int]]


class Heard(Protocol):
    """One thing said to the writer, and the way back to who said it."""

    said: Claim | Envelope | Beat

    def reply(self, value: Granted | Denied | None) -> None: ...


class WriterSide(Protocol):
    """How the writer hears. What is taken and never answered is said again by the worker."""

    bell: asyncio.Event
    """Rings when there is something to take, or when `ring` was called by another process."""

    def take(self, most: int) -> list[Heard]: ...

    def give_back(self, heard: Sequence[Heard]) -> None:
        """To be taken again, before all else."""

    @property
    def empty(self) -> bool: ...

    async def flush(self) -> None:
        """Send the replies."""

    async def heard_until(self) -> float | None:
        """How many seconds ago the oldest thing was said that no writer has answered; 0 if there
        is none, None while nobody can tell: then no silence is judged."""


class WorkerSide(Protocol):
    """How a worker reaches the writer. Each call returns after the writer's commit."""

    async def claim(self, claim: Claim) -> Granted | Denied: ...

    async def report(self, envelope: Envelope) -> None: ...

    def beat(self, worker: str, attempts: Sequence[tuple[JobId, int]]) -> None: ...


class Broker(Protocol):
    """How the writer and the web role ring for work. A ring may be lost; alarms repeat it."""

    def room(self, queue: str) -> int:
        """How many more unclaimed messages the queue of this provider takes now."""

    async def send(self, messages: Sequence[Message], chores: Sequence[Chore]) -> None: ...
