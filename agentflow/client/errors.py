"""What the client raises.

ClientError
├── ApiError              the server refused; `status`, `title`, `detail`, `errors`, `retry_after`
│   ├── Unauthorized      401  no API key, or a wrong one
│   ├── Forbidden         403
│   ├── NotFound          404
│   ├── Conflict          409
│   ├── InvalidRequest    422  `errors` lists each fault
│   ├── TooManyRequests   429  also after the retries
│   └── Unavailable       502, 503, 504, also after the retries; a `ServerUnreachable` too
├── ServerUnreachable     no answer that counts, also after the retries
├── JobFailed             `result()`: the job ended without one; `error.kind` says why
└── JobTimeout            `result(timeout)`: time is up; the job goes on

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
    """An RFC 9457 answer. `errors` lists each fault of an invalid request as `{loc, msg}`;
    `retry_after` is in seconds, None where the server does not say."""

    def __init__(
        self, status: int, said: Mapping[str, Any], retry_after: float | None = None
    ) -> None:
        self.status = status
        self.title = str(said.get("title") or f"HTTP {status}")
        self.detail = str(said.get("detail") or "")
        self.errors: list[dict[str, str]] = list(said.get("errors") or [])
        self.retry_after = retry_after
        super().__init__(f"{self.title}: {self.detail}" if self.detail else self.title)


class Unauthorized(ApiError):
    """The API key is missing or unknown."""


class Forbidden(ApiError):
    """The API key is good, but not for this."""


class NotFound(ApiError):
    """There is no such thing, or not for this API key."""


class Conflict(ApiError):
    """The request does not fit the present state, or its idempotency key was used otherwise."""


class InvalidRequest(ApiError):
    """The request does not fit; `errors` says each fault."""


class TooManyRequests(ApiError):
    """The server asks for fewer requests."""


class ServerUnreachable(ClientError):
    """Nobody answers there, or only to say that it cannot work now."""


class Unavailable(ApiError, ServerUnreachable):
    """The server, or a proxy in front of it, says that it cannot work now."""


class JobFailed(ClientError, errors.JobFailed):
    """`status` is failed, canceled or expired; `error` is None for most canceled jobs."""

    def __init__(self, id: str, status: str, error: Error | None) -> None:
        errors.JobFailed.__init__(self, id, status, error)
        self.id = id


class JobTimeout(ClientError, errors.JobTimeout):
    """The job did not end in time; it goes on."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: InvalidRequest,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def refusal(status: int, said: Mapping[str, Any], retry_after: float | None = None) -> ApiError:
    """The error of a status; a plain `ApiError` for those without a class of their own."""
    return _BY_STATUS.get(status, ApiError)(status, said, retry_after)
