"""What a task returned, normalized: the same shape whatever the provider."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from agentflow.errors import ErrorKind, ProviderFailure
from agentflow.types import JobId, Json

_ARTIFACT = re.compile(r"art_([0-9a-f]{32})_(0|[1-9][0-9]{0,5})")


class Custody(StrEnum):
    """Where a file stands on its way from the provider's URL into our own storage."""

    PENDING = "pending"
    """The provider has it; we do not yet."""
    STORED = "stored"
    """We have it, whole; `sha256` and `size` are known."""
    LOST = "lost"
    """The provider deleted or refused it before we could copy it; `note` says why."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a result. A task gives `url` (http, https or data); custody fills in the rest.

    `size` is in bytes, `sha256` in hex, `key` is its place in the artifact store. `expires_at` is
    when the provider deletes its copy, where the task knows it: until then copying is tried again.
    Without a zone it is UTC.
    """

    url: str | None
    name: str | None = None
    media_type: str | None = None
    id: str | None = None
    status: Custody = Custody.PENDING
    sha256: str | None = None
    size: int | None = None
    key: str | None = None
    note: str | None = None
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.expires_at is not None and self.expires_at.tzinfo is not UTC:
            naive = self.expires_at.tzinfo is None
            zoned = self.expires_at.replace(tzinfo=UTC) if naive else self.expires_at
            object.__setattr__(self, "expires_at", zoned.astimezone(UTC))


@dataclass(frozen=True, slots=True)
class Cost:
    """Money, as a decimal string (`"0.0042"`) and an ISO 4217 currency; `source` says who told."""

    amount: str
    currency: str = "USD"
    source: str = "provider"


@dataclass(frozen=True, slots=True)
class Result:
    """What a call came to. `usage` counts what the provider bills (`{"predict_seconds": 2.1}`)."""

    output: Json = None
    text: str | None = None
    artifacts: Sequence[Artifact] = ()
    usage: Mapping[str, float] = field(default_factory=dict)
    cost: Cost | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "artifacts", tuple(self.artifacts))

    @property
    def uncollected(self) -> bool:
        """Whether a file is still only at the provider."""
        return any(a.status is Custody.PENDING for a in self.artifacts)

    def with_artifacts(self, artifacts: Sequence[Artifact]) -> Result:
        return replace(self, artifacts=tuple(artifacts))


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as it is recorded and shown. `retry_after` is in seconds."""

    kind: ErrorKind
    message: str
    retryable: bool = False
    retry_after: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, failure: ProviderFailure) -> ErrorInfo:
        return cls(
            failure.kind, failure.message, failure.retryable, failure.retry_after, failure.detail
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """`fraction` lies in 0..1; `message` is one line for people."""

    fraction: float | None = None
    message: str | None = None


def artifact_id(job: JobId, index: int) -> str:
    """`art_`, the job's hex digits and the file's place in the result: found without an index."""
    return f"art_{job.removeprefix('job_')}_{index}"


def artifact_place(id: str) -> tuple[JobId, int] | None:
    """The job and index of an artifact id; None if it is not one."""
    match = _ARTIFACT.fullmatch(id)
    return (JobId(f"job_{match[1]}"), int(match[2])) if match else None
