"""Errors of the SDK and of its HTTP client, in agentflow's words.

What decides is whether a paid create can have reached Replicate. It cannot while a connection is
being made. Once the request is on its way, silence, a broken connection and a 5xx tell nothing:
a gateway answers 500, 502 or 504 as well after the work was taken as before. One 5xx does tell, 503
with Retry-After: whoever names a time to come back turned the request away. A 4xx is a refusal,
except 408, which some gateways give when the service behind them is slow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any

from agentflow import (
    AuthenticationFailed,
    InvalidInput,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    ProviderFailure,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)
from agentflow_replicate.facts import failed

LONGEST_DETAIL = 500


class Meaning(Enum):
    """What an error says about the request it happened to."""

    NEVER_SENT = auto()
    """No byte of it reached Replicate; another try can help."""
    CANNOT_SEND = auto()
    """It never left and never will: the fault is on our side."""
    UNKNOWN = auto()
    """It may have arrived."""
    ANSWERED = auto()
    """Replicate refused it; the status says why."""
    MODEL_FAILED = auto()
    """It was done, and the model failed."""


TABLE: Mapping[str, Meaning] = {
    "httpx.ConnectError": Meaning.NEVER_SENT,
    "httpx.ConnectTimeout": Meaning.NEVER_SENT,
    "httpx.PoolTimeout": Meaning.NEVER_SENT,
    "httpx.ProxyError": Meaning.NEVER_SENT,
    "httpx.UnsupportedProtocol": Meaning.CANNOT_SEND,
    "httpx.LocalProtocolError": Meaning.CANNOT_SEND,
    "httpx.InvalidURL": Meaning.CANNOT_SEND,
    "httpx.CookieConflict": Meaning.CANNOT_SEND,
    "httpx.ReadTimeout": Meaning.UNKNOWN,
    "httpx.WriteTimeout": Meaning.UNKNOWN,
    "httpx.ReadError": Meaning.UNKNOWN,
    "httpx.WriteError": Meaning.UNKNOWN,
    "httpx.CloseError": Meaning.UNKNOWN,
    "httpx.RemoteProtocolError": Meaning.UNKNOWN,
    "httpx.DecodingError": Meaning.UNKNOWN,
    "httpx.TooManyRedirects": Meaning.UNKNOWN,
    "httpx.HTTPError": Meaning.UNKNOWN,
    "httpx.StreamError": Meaning.UNKNOWN,
    "httpx.HTTPStatusError": Meaning.ANSWERED,
    "builtins.TimeoutError": Meaning.UNKNOWN,
    "replicate.exceptions.ReplicateError": Meaning.ANSWERED,
    "replicate.exceptions.ModelError": Meaning.MODEL_FAILED,
    "replicate.exceptions.ReplicateException": Meaning.CANNOT_SEND,
}
"""By the nearest class an error descends from. By name: a process without work loads no SDK."""


def failure(error: Exception, *, create: bool = True) -> ProviderFailure | None:
    """What an error comes to; None if it is neither the SDK's nor its HTTP client's.

    `create` says whether the request was one that is paid for if it arrived; others can be
    repeated.
    """
    if isinstance(error, ProviderFailure):
        return error
    said = f"{type(error).__name__}: {error}"[:LONGEST_DETAIL]
    match meaning(error):
        case None:
            return None
        case Meaning.ANSWERED:
            return _answered(error, create)
        case Meaning.MODEL_FAILED:
            return failed(getattr(getattr(error, "prediction", None), "error", None))
        case Meaning.CANNOT_SEND:
            return Unavailable(f"The request cannot be sent. {said}", retryable=False)
        case Meaning.UNKNOWN if create:
            return OutcomeUnknown(f"Replicate may have taken the prediction. {said}")
        case Meaning.NEVER_SENT | Meaning.UNKNOWN:
            return Unavailable(f"Replicate cannot be reached. {said}")


def meaning(error: Exception) -> Meaning | None:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__)
    return next((TABLE[name] for name in names if name in TABLE), None)


def refusal(
    status: int, detail: str, *, retry_after: float | None = None, create: bool = True
) -> ProviderFailure:
    """What an answer with an error status comes to; `retry_after` is in seconds, as asked for."""
    text = f"Replicate answered {status}. {detail}"[:LONGEST_DETAIL]
    shown = {"status": status}
    match status:
        case 401:
            return AuthenticationFailed(text, detail=shown)
        case 402:
            return QuotaExceeded(text, detail=shown)
        case 403:
            return PermissionRefused(text, detail=shown)
        case 429:
            return RateLimited(text, retry_after=retry_after, detail=shown)
        case 503 if retry_after is not None:
            return Unavailable(text, retry_after=retry_after, detail=shown)
        case _ if status == 408 or status >= 500:
            return (OutcomeUnknown if create else Unavailable)(text, detail=shown)
        case _ if status >= 400:
            return InvalidInput(text, detail=shown)
        case _:
            return ProviderError(f"{text} Is REPLICATE_BASE_URL right?", detail=shown)


def _answered(error: Any, create: bool) -> ProviderFailure:
    """From a `ReplicateError`, and from the response that caused it where there is one."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if not isinstance(status, int):
        return ProviderError(f"Replicate's SDK says: {error}"[:LONGEST_DETAIL])
    said = " ".join(str(getattr(error, part, None) or "") for part in ("title", "detail")).strip()
    headers = {} if response is None else response.headers
    wait = asked_wait(headers)
    if wait is None and status == 429:
        wait = told_wait(headers, said)
    return refusal(status, said, retry_after=wait, create=create)


def asked_wait(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The seconds of a Retry-After header, which holds a number or a date (RFC 9110, 10.2.3)."""
    given = headers.get("retry-after", "").strip()
    if (seconds := _number(given)) is not None:
        return seconds
    try:
        until = parsedate_to_datetime(given)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def told_wait(headers: Mapping[str, str], detail: str) -> float | None:
    """The seconds in "Your rate limit resets in ~30s.", else those of `ratelimit-reset`.

    In that order: the header is part of every answer and speaks of one limit of several.
    """
    told = re.search(r"resets in ~?(\d+(?:\.\d+)?)\s*s", detail)
    return float(told[1]) if told else _number(headers.get("ratelimit-reset", ""))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
