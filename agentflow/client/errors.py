"""What the client raises.

ClientError
├── ApiError            the server refused; `status`, `title`, `detail`, `errors`
├── ServerUnreachable   no answer that counts, also after the repeats
├── JobFailed           `result()`: the job ended without one; `error.kind` says why
└── JobTimeout          `result(timeout)`: time is up; the job goes on

The last two are also `agentflow.JobFailed` and `agentflow.JobTimeout`, which the application's
own `await job` raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentflow import errors


@dataclass(frozen=True, slots=True)
class Error:
    """Why a job failed, as it was recorded. `retry_after` is in seconds."""

    kind: str
    message: str
    retryable: bool = False
    retry_after: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class ClientError(Exception):
    """Root of what the client raises."""


class ApiError(ClientError):
    """An RFC 9457 answer. `errors` lists each fault of an invalid request as `{loc, msg}`."""

    def __init__(self, status: int, said: Mapping[str, Any]) -> None:
        self.status = status
        self.title = str(said.get("title") or f"HTTP {status}")
        self.detail = str(said.get("detail") or "")
        self.errors: list[dict[str, str]] = list(said.get("errors") or [])
        super().__init__(f"{self.title}: {self.detail}" if self.detail else self.title)


class ServerUnreachable(ClientError):
    """Nobody answers there, or only to say that it cannot work now."""


class JobFailed(ClientError, errors.JobFailed):
    """`status` is failed, canceled or expired; `error` is None for most canceled jobs."""

    def __init__(self, id: str, status: str, error: Error | None) -> None:
        errors.JobFailed.__init__(self, id, status, error)
        self.id = id


class JobTimeout(ClientError, errors.JobTimeout):
    """The job did not end in time; it goes on."""
