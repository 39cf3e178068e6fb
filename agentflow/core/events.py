"""Facts, in the past tense and silent about who told us; the source is on the envelope.

Plugins make the provider's facts (`Accepted`, `Progressed`, `Changed`, `Succeeded`, `Failed`,
`Canceled`); agentflow fills in which attempt they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeAlias

import orjson
from pydantic import TypeAdapter

from agentflow.core.results import Artifact, Cost, ErrorInfo, Result
from agentflow.errors import ProviderFailure
from agentflow.types import JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """`attempt` is the number of the attempt the fact is about, 0 if it is about the job."""

    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderFact(Base):
    """`external_id` is the provider's own id of the work, where the fact carries it."""

    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Submitted(Base):
    """The job was stored."""


@dataclass(frozen=True, slots=True)
class Started(Base):
    """A worker asked to make the attempt's call; `nonce` is new for every asking, `account` tells
    which of the provider's keys it has at hand."""

    nonce: str
    worker: str
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted(Base):
    """The provider took the work and will say later; ask after `poll_after` seconds."""

    external_id: str
    poll_after: float | None = None


@dataclass(frozen=True, slots=True)
class Progressed(ProviderFact):
    """The work goes on; `fraction` lies in 0..1."""

    fraction: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Changed(ProviderFact):
    """Something changed and the notice does not say what: fetch it."""


@dataclass(frozen=True, slots=True)
class Succeeded(ProviderFact):
    """The provider delivered."""

    result: Result = field(default_factory=Result)


@dataclass(frozen=True, slots=True)
class Failed(ProviderFact):
    """The attempt failed. Give it a `ProviderFailure`; it is kept as an `ErrorInfo`. `usage` and
    `cost` say what was billed all the same, where the provider tells."""

    error: ErrorInfo
    usage: Mapping[str, float] | None = None
    cost: Cost | None = None

    def __init__(
        self,
        error: ErrorInfo | ProviderFailure,
        *,
        attempt: int = 0,
        external_id: str | None = None,
        usage: Mapping[str, float] | None = None,
        cost: Cost | None = None,
    ) -> None:
        info = ErrorInfo.of(error) if isinstance(error, ProviderFailure) else error
        about = {"attempt": attempt, "external_id": external_id, "usage": usage, "cost": cost}
        for name, value in {"error": info, **about}.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Canceled(ProviderFact):
    """The provider stopped the work without a result, or the worker's own task was stopped."""


@dataclass(frozen=True, slots=True)
class Collected(Base):
    """Files were copied, or found lost; those still `pending` are tried again."""

    artifacts: Sequence[Artifact]


@dataclass(frozen=True, slots=True)
class Abandoned(Base):
    """The worker gave the attempt up without an outcome; `called` if its call may have left.
    `nonce` is the asking it was granted under; without one, whichever is."""

    called: bool
    nonce: str | None = None


@dataclass(frozen=True, slots=True)
class OverBudget(Base):
    """A budget has no room for what the attempt's call may cost; `message` says which."""

    message: str


@dataclass(frozen=True, slots=True)
class CancelRequested(Base):
    """Somebody asked for the job to end."""


@dataclass(frozen=True, slots=True)
class Woke(Base):
    """The job's alarm went off and everything heard before it has been read."""


Event: TypeAlias = (
    Submitted
    | Started
    | Accepted
    | Progressed
    | Changed
    | Succeeded
    | Failed
    | Canceled
    | Collected
    | Abandoned
    | OverBudget
    | CancelRequested
    | Woke
)

EVENTS: dict[str, type[Event]] = {
    "submitted": Submitted,
    "started": Started,
    "accepted": Accepted,
    "progressed": Progressed,
    "changed": Changed,
    "succeeded": Succeeded,
    "failed": Failed,
    "canceled": Canceled,
    "collected": Collected,
    "abandoned": Abandoned,
    "over_budget": OverBudget,
    "cancel_requested": CancelRequested,
    "woke": Woke,
}
NAMES: dict[type[Event], str] = {cls: name for name, cls in EVENTS.items()}


class Source(StrEnum):
    """Who told us."""

    WORKER = "worker"
    WEBHOOK = "webhook"
    POLL = "poll"
    API = "api"
    CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event on its way to the writer. The same `id` is applied once, however often it comes."""

    id: str
    source: Source
    at: datetime
    job_id: JobId
    event: Event


def name_of(event: Event) -> str:
    return NAMES[type(event)]


def dump_event(event: Event) -> str:
    """The event's fields as JSON text; its name travels beside it."""
    return orjson.dumps(event).decode()


def load_event(name: str, fields: str | bytes | dict[str, Any]) -> Event:
    """The reverse of `dump_event`. Raises `ValueError` for what no event looks like."""
    given: dict[str, Any] = fields if isinstance(fields, dict) else orjson.loads(fields)
    if name not in EVENTS:
        raise ValueError(f"no event is called {name!r}")
    if not isinstance(given, dict):
        raise ValueError(f"the fields of {name} are no object")
    if name == "failed":
        return Failed(
            _adapter("error").validate_python(given.get("error")),
            attempt=given.get("attempt", 0),
            external_id=given.get("external_id"),
            usage=_adapter("usage").validate_python(given.get("usage")),
            cost=_adapter("cost").validate_python(given.get("cost")),
        )
    event: Event = _adapter(name).validate_python(given)
    return event


_PARTS: dict[str, Any] = {
    "error": ErrorInfo,
    "usage": dict[str, float] | None,
    "cost": Cost | None,
}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_PARTS.get(name) or EVENTS[name])
