"""What an answer that is not 2xx means, in agentflow's words."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from agentflow import (
    AuthenticationFailed,
    CallTimeout,
    ContentRejected,
    InvalidInput,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    ProviderFailure,
    QuotaExceeded,
    RateLimited,
    ResultLost,
    Unavailable,
    Unstorable,
)
from agentflow_http.pointer import at

_CLASSES = (
    AuthenticationFailed, CallTimeout, ContentRejected, InvalidInput, OutcomeUnknown,
    PermissionRefused, ProviderError, QuotaExceeded, RateLimited, ResultLost, Unavailable,
    Unstorable,
)  # fmt: skip
KINDS: dict[str, type[ProviderFailure]] = {cls.kind.value: cls for cls in _CLASSES}

_BY_STATUS: dict[int, type[ProviderFailure]] = {
    401: AuthenticationFailed,
    402: QuotaExceeded,
    403: PermissionRefused,
    425: Unavailable,
    429: RateLimited,
}
_PLACES = ("/error/message", "/error", "/message", "/detail", "/title", "/errors/0/message")
LONGEST = 500
LONGEST_WAIT = 86_400.0


def failure(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    unsure: bool,
    overrides: Mapping[str, str],
    message: str | None = None,
    once: bool = False,
) -> ProviderFailure:
    """What the answer comes to. `unsure` says that the call may have had an effect and must not be
    repeated; `once` that it carried an idempotency key, so that a 409 is the first one's doing;
    `message` is where the body says what is wrong."""
    wait = seconds(headers.get("retry-after", ""), time.time())
    said = f"HTTP {status}. {reason(body, message)}".strip()[:LONGEST]
    return _class(status, wait, unsure, overrides, once)(
        said, retry_after=wait, detail={"status": status}
    )


def _class(
    status: int, wait: float | None, unsure: bool, overrides: Mapping[str, str], once: bool
) -> type[ProviderFailure]:
    if str(status) in overrides:
        return KINDS[overrides[str(status)]]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status == 409 and once:
        return Unavailable
    turned_away = status == 503 and wait is not None  # it says itself that it did nothing
    if status >= 500 or status == 408:
        return OutcomeUnknown if unsure and not turned_away else Unavailable
    return InvalidInput if status >= 400 else ProviderError


def reason(body: bytes, place: str | None) -> str:
    """The sentence of an error's body, if there is one."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    found = (at(said, each) for each in ((place,) if place else _PLACES))
    return next((each for each in found if isinstance(each, str) and each), "")


def seconds(text: str, now: float) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3), a number of seconds or a date, as seconds from now."""
    if text.isascii() and text.isdigit() and len(text) < 12:
        return min(float(text), LONGEST_WAIT)
    try:
        date = parsedate_to_datetime(text)
        return min(max(0.0, date.replace(tzinfo=UTC).timestamp() - now), LONGEST_WAIT)
    except (ValueError, OverflowError):
        return None
