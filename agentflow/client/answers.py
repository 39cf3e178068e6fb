"""What answers say, as values: pure reading of JSON and headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar

import httpx

from agentflow.client.errors import ApiError, ServerUnreachable, refusal

FINAL = frozenset({"succeeded", "failed", "canceled", "expired"})

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
    def read(cls, data: Mapping[str, Any], **more: Any) -> Self:
        """From the entry's JSON, and what stands beside it."""
        progress = data.get("progress") or {}
        told = {"progress": progress.get("fraction"), "message": progress.get("message")}
        return known(cls, {**data, **told, **more, "at": datetime.fromisoformat(data["at"])})

    @property
    def ends(self) -> bool:
        """Whether this entry made the job final: what comes later is recorded and ignored."""
        return self.status in FINAL and self.disposition == "applied"


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of what a call says while it runs; `str()` gives its text. `offset` counts the
    characters before it, of this channel and attempt; those of a higher attempt begin anew.
    `missing` characters before it were lost; None: nobody knows how many, or whether."""

    attempt: int
    channel: str
    offset: int
    text: str = ""
    missing: int | None = 0

    def __str__(self) -> str:
        return self.text

    @property
    def end(self) -> int:
        """The offset of what comes next."""
        return self.offset + len(self.text) + (self.missing or 0)

    def behind(self, heard: int) -> Delta | None:
        """What of it lies behind the first `heard` characters; None if nothing does."""
        if heard <= self.offset:
            return self
        if self.text and heard < self.end:
            return replace(self, offset=heard, text=self.text[heard - self.offset :])
        return None


@dataclass(frozen=True, slots=True)
class FeedEvent(Event):
    """An entry of the whole feed. `feed(after=cursor)` goes on behind it."""

    job_id: str = ""
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class FeedPage:
    """A part of the feed as it was stored; `cursor` goes on behind it, also where it is empty."""

    events: list[FeedEvent]
    cursor: str


@dataclass(frozen=True, slots=True)
class Bulk:
    """What a command did to all jobs of a filter; `more` means that `limit` cut it short."""

    matched: int
    done: int
    ids: list[str]
    dry_run: bool
    more: bool


def known(cls: type[T], data: Mapping[str, Any]) -> T:
    """What the class knows of the data: a newer server may say more."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # called with dataclasses
    return cls(**{k: v for k, v in data.items() if k in names})


def feed_page(said: Mapping[str, Any]) -> FeedPage:
    return FeedPage([FeedEvent.read(entry) for entry in said["items"]], said["next_cursor"])


def outcomes(said: Mapping[str, Any]) -> list[dict[str, Any] | ApiError]:
    """What became of each job of a batch, in the order of the batch."""
    items = sorted(said["items"], key=lambda item: item["index"])
    return [item["job"] or refusal(item["status"], item["error"] or {}) for item in items]


def read(answer: httpx.Response, passing: int = 200) -> dict[str, Any]:
    """The JSON object of a good answer, or of one with the status `passing`; `{}` for 204.

    Raises `ApiError`, or `ServerUnreachable` if this is not agentflow's way of answering.
    """
    if not answer.is_success and answer.status_code != passing:
        raise refused(answer)
    if answer.status_code == 204:
        return {}
    said = _object(answer)
    if said is None:
        raise ServerUnreachable(f"{_place(answer)} does not answer as agentflow does")
    return said


def refused(answer: httpx.Response) -> ApiError | ServerUnreachable:
    """The error of a bad answer, its body read. A proxy may say in any words that it is too
    much or that nobody is there."""
    said, status = _object(answer), answer.status_code
    if said is None and status not in (429, 502, 503, 504):
        return ServerUnreachable(
            f"{_place(answer)} does not answer as agentflow does (status {status})"
        )
    return refusal(status, said or {}, retry_after(answer.headers, datetime.now(UTC)))


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds of `Retry-After` (RFC 9110, 10.2.3), which are a number or a date."""
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        at = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())


def _object(answer: httpx.Response) -> dict[str, Any] | None:
    """The JSON object of an answer; None if it holds none."""
    try:
        said = answer.json()
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _place(answer: httpx.Response) -> str:
    url = answer.request.url
    return f"{url.scheme}://{url.netloc.decode()}"
