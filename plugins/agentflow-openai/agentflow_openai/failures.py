"""Errors of the SDK and of its HTTP client, in agentflow's words.

What decides is whether a paid call can have reached OpenAI. It cannot while a connection is being
made. Once the request is on its way, silence, a broken connection and a gateway's 5xx tell nothing.
A 500 or 503 that holds OpenAI's own error object does tell: the service says itself that it failed,
and named no work of ours. A 4xx is a refusal, except 408, which gateways give for a slow service.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from agentflow import (
    AuthenticationFailed,
    ContentRejected,
    InvalidInput,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    ProviderFailure,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)

LONGEST = 500


class Meaning(Enum):
    """What an error says about the request it happened to."""

    NEVER_SENT = auto()
    """No byte of it reached OpenAI; another try can help."""
    CANNOT_SEND = auto()
    """It never left and never will: the fault is on our side."""
    UNKNOWN = auto()
    """It may have arrived."""
    ANSWERED = auto()
    """OpenAI refused it; the status says why."""
    CREDENTIALS = auto()
    """No credentials could be had for it."""


TABLE: Mapping[str, Meaning] = {
    "httpx2.ConnectError": Meaning.NEVER_SENT,
    "httpx2.ConnectTimeout": Meaning.NEVER_SENT,
    "httpx2.PoolTimeout": Meaning.NEVER_SENT,
    "httpx2.ProxyError": Meaning.NEVER_SENT,
    "httpx2.UnsupportedProtocol": Meaning.CANNOT_SEND,
    "httpx2.LocalProtocolError": Meaning.CANNOT_SEND,
    "httpx2.InvalidURL": Meaning.CANNOT_SEND,
    "httpx2.CookieConflict": Meaning.CANNOT_SEND,
    "httpx2.HTTPError": Meaning.UNKNOWN,
    "httpx2.StreamError": Meaning.UNKNOWN,
    "builtins.TimeoutError": Meaning.UNKNOWN,
    "openai.APIStatusError": Meaning.ANSWERED,
    "openai.APITimeoutError": Meaning.UNKNOWN,
    "openai.APIConnectionError": Meaning.UNKNOWN,
    "openai.APIResponseValidationError": Meaning.UNKNOWN,
    "openai.APIError": Meaning.UNKNOWN,
    "openai.LengthFinishReasonError": Meaning.UNKNOWN,
    "openai.ContentFilterFinishReasonError": Meaning.UNKNOWN,
    "openai.OAuthError": Meaning.CREDENTIALS,
    "openai.SubjectTokenProviderError": Meaning.CREDENTIALS,
    "openai.WebSocketConnectionClosedError": Meaning.UNKNOWN,
    "openai.WebSocketQueueFullError": Meaning.CANNOT_SEND,
    "openai.InvalidWebhookSignatureError": Meaning.CANNOT_SEND,
    "openai.OpenAIError": Meaning.CANNOT_SEND,
}
"""By the nearest class an error descends from. By name: a process without work loads no SDK."""

REJECTED = frozenset(
    {
        "content_policy_violation",
        "moderation_blocked",
        "image_content_policy_violation",
        "bio_policy",
        "misalignment_policy_violation",
        "content_filter",
        "cyber_policy",
    }
)
"""Codes of content that OpenAI will not work on."""


def failure(error: Exception, *, create: bool = True) -> ProviderFailure | None:
    """What an error comes to; None if it is neither the SDK's nor its HTTP client's.

    `create` says whether the request is paid for if it arrived; others can be repeated.
    """
    if isinstance(error, ProviderFailure):
        return error
    said = f"{type(error).__name__}: {error}"[:LONGEST]
    match meaning(error):
        case None:
            return None
        case Meaning.ANSWERED:
            return _answered(error, create)
        case Meaning.CREDENTIALS:
            return AuthenticationFailed(said)
        case Meaning.CANNOT_SEND:
            return Unavailable(f"The request cannot be sent. {said}", retryable=False)
        case Meaning.UNKNOWN if create:
            return OutcomeUnknown(f"OpenAI may have taken the call. {said}")
        case Meaning.NEVER_SENT | Meaning.UNKNOWN:
            return Unavailable(f"OpenAI cannot be reached. {said}")


def is_gone(error: Exception) -> bool:
    """Whether OpenAI says that it has no such thing."""
    told = failure(error, create=False)
    return told is not None and told.detail.get("status") == 404


def meaning(error: BaseException) -> Meaning | None:
    """Of a connection error of the SDK, its cause knows more: whether anything left."""
    if _named(error) in ("openai.APIConnectionError", "openai.APITimeoutError"):
        cause = error.__cause__
        if cause is not None and (deeper := meaning(cause)) is not None:
            return deeper
    return next((TABLE[name] for name in _names(error) if name in TABLE), None)


def _named(error: BaseException) -> str:
    return next(iter(_names(error)))


def _names(error: BaseException) -> list[str]:
    """`package.Class` of the class and its bases: the SDKs export them all at the top."""
    return [f"{c.__module__.partition('.')[0]}.{c.__qualname__}" for c in type(error).__mro__]


def _answered(error: Any, create: bool) -> ProviderFailure:
    body = error.body if isinstance(error.body, Mapping) else {}
    return refusal(
        error.status_code,
        str(body.get("message") or error.message),
        code=error.code if isinstance(error.code, str) else None,
        own=bool(body),
        retry_after=asked_wait(error.response.headers),
        create=create,
    )


def refusal(
    status: int,
    message: str,
    *,
    code: str | None = None,
    own: bool = True,
    retry_after: float | None = None,
    create: bool = True,
) -> ProviderFailure:
    """What an answer with an error status comes to. `own`: it held OpenAI's error object.
    `retry_after` is in seconds."""
    text = f"OpenAI answered {status}. {message}"[:LONGEST]
    shown: dict[str, Any] = {"status": status, **({"code": code} if code else {})}
    match status:
        case 401:
            return AuthenticationFailed(text, detail=shown)
        case 402:
            return QuotaExceeded(text, detail=shown)
        case 403:
            return PermissionRefused(text, detail=shown)
        case 429 if code in ("insufficient_quota", "billing_hard_limit_reached"):
            return QuotaExceeded(text, detail=shown)
        case 429:
            return RateLimited(text, retry_after=retry_after, detail=shown)
        case 409:
            return Unavailable(text, retry_after=retry_after, detail=shown)
        case 500 | 503 if own or retry_after is not None:
            return Unavailable(text, retry_after=retry_after, detail=shown)
        case _ if status == 408 or status >= 500:
            return (OutcomeUnknown if create else Unavailable)(text, detail=shown)
        case _ if status >= 400 and code in REJECTED:
            return ContentRejected(text, detail=shown)
        case _ if status >= 400:
            return InvalidInput(text, detail=shown)
        case _:
            return ProviderError(f"{text} Is OPENAI_BASE_URL right?", detail=shown)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds of `retry-after-ms` or `retry-after`, as OpenAI writes them: numbers."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            value = float(headers.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            return value * unit
    return None
