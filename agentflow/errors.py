"""Every error agentflow raises or records.

    AgentflowError
    ├── ProviderFailure          what a provider call can end in; `kind` is what clients see
    │   ├── InvalidInput         invalid_input
    │   ├── AuthenticationFailed authentication
    │   ├── PermissionRefused    permission
    │   ├── QuotaExceeded        quota_exceeded
    │   ├── RateLimited          rate_limited      a retry can help
    │   ├── ContentRejected      content_rejected
    │   ├── CallTimeout          timeout           a retry can help
    │   ├── Unavailable          unavailable       a retry can help
    │   ├── ResultLost           result_lost
    │   ├── OutcomeUnknown       outcome_unknown   nobody knows; never repeated blindly
    │   ├── Unstorable           unstorable
    │   └── ProviderError        provider_error
    ├── SignatureError           a webhook that is not from whom it says
    │   └── UnknownKey           by no key that we hold; another may fit
    ├── KeysUnavailable          the keys that would tell cannot be fetched
    ├── SettingsError            refused at start, with the way to mend it
    ├── PluginError              a plugin breaks its contract
    ├── UsageError               the caller's code, with what to write instead
    ├── NotFound
    ├── Conflict
    ├── StoreUnavailable         the database does not answer
    ├── JobFailed                raised by `job.result()`
    └── JobTimeout               `job.result(timeout)` ran out of time; the job goes on

A docstring is the default message.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class ErrorKind(StrEnum):
    """What went wrong, in words a client can match on."""

    INVALID_INPUT = "invalid_input"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    QUOTA_EXCEEDED = "quota_exceeded"
    RATE_LIMITED = "rate_limited"
    CONTENT_REJECTED = "content_rejected"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    RESULT_LOST = "result_lost"
    OUTCOME_UNKNOWN = "outcome_unknown"
    UNSTORABLE = "unstorable"
    PROVIDER_ERROR = "provider_error"


class AgentflowError(Exception):
    """Something went wrong in agentflow."""

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(self.message)


class ProviderFailure(AgentflowError):
    """A provider call ended without a result."""

    kind: ClassVar[ErrorKind] = ErrorKind.PROVIDER_ERROR
    retryable: bool = False

    def __init__(
        self,
        message: str | None = None,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """`retry_after` is in seconds; `detail` is JSON shown to the client, never a secret."""
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable
        self.retry_after = retry_after
        self.detail = detail or {}


class InvalidInput(ProviderFailure):
    """The input does not fit the task."""

    kind = ErrorKind.INVALID_INPUT


class AuthenticationFailed(ProviderFailure):
    """The provider refused the credentials."""

    kind = ErrorKind.AUTHENTICATION


class PermissionRefused(ProviderFailure):
    """The credentials are good but not for this."""

    kind = ErrorKind.PERMISSION


class QuotaExceeded(ProviderFailure):
    """The account has no credit or quota left."""

    kind = ErrorKind.QUOTA_EXCEEDED


class RateLimited(ProviderFailure):
    """The provider asks for fewer calls for a while."""

    kind = ErrorKind.RATE_LIMITED
    retryable = True


class ContentRejected(ProviderFailure):
    """The provider refused the content."""

    kind = ErrorKind.CONTENT_REJECTED


class CallTimeout(ProviderFailure):
    """The call took too long, and surely had no effect."""

    kind = ErrorKind.TIMEOUT
    retryable = True


class Unavailable(ProviderFailure):
    """The provider cannot be reached or is down, and the call surely had no effect."""

    kind = ErrorKind.UNAVAILABLE
    retryable = True


class ResultLost(ProviderFailure):
    """The provider no longer has the result."""

    kind = ErrorKind.RESULT_LOST


class OutcomeUnknown(ProviderFailure):
    """The request may have reached the provider; nobody knows whether it took effect."""

    kind = ErrorKind.OUTCOME_UNKNOWN


class Unstorable(ProviderFailure):
    """The result cannot be stored."""

    kind = ErrorKind.UNSTORABLE


class ProviderError(ProviderFailure):
    """The provider says the work failed."""

    kind = ErrorKind.PROVIDER_ERROR


class SignatureError(AgentflowError):
    """The signature does not fit the delivery."""


class UnknownKey(SignatureError):
    """The signature is by no key that we hold."""


class KeysUnavailable(AgentflowError):
    """The keys that webhooks are signed by cannot be fetched."""


class SettingsError(AgentflowError):
    """A setting is missing or wrong."""


class PluginError(AgentflowError):
    """A plugin breaks its contract."""


class UsageError(AgentflowError):
    """agentflow was used in a way that cannot work."""


class NotFound(AgentflowError):
    """There is no such thing."""


class Conflict(AgentflowError):
    """The request does not fit the present state."""


class StoreUnavailable(AgentflowError):
    """The database does not answer."""


class JobFailed(AgentflowError):
    """The job ended without a result."""

    def __init__(self, job_id: str, status: str, error: Any = None) -> None:
        """`error` is the recorded `ErrorInfo`; None if the job was canceled."""
        said = f": {error.message}" if error is not None else ""
        super().__init__(f"Job {job_id} is {status}{said}")
        self.job_id, self.status, self.error = job_id, status, error


class JobTimeout(AgentflowError):
    """The job did not end in time; it goes on."""
