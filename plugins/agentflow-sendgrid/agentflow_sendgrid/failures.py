"""What SendGrid answers to a mail it does not take, in agentflow's words.

A 5xx tells nothing: the mail may have been taken. Errors of the connection are judged by the worker
itself, by what httpx says of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
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
)

LONGEST = 500


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderFailure:
    """What an answer other than 202 comes to."""
    text = f"SendGrid answered {status}. {reasons(body)}".strip()[:LONGEST]
    shown = {"status": status}
    match status:
        case 401:
            return AuthenticationFailed(text, detail=shown)
        case 402:
            return QuotaExceeded(text, detail=shown)
        case 403:
            return PermissionRefused(text, detail=shown)
        case 429:
            return RateLimited(text, retry_after=wait(headers, time.time()), detail=shown)
        case _ if status == 408 or status >= 500:
            return OutcomeUnknown(text, detail=shown)
        case _ if status >= 400:
            return InvalidInput(text, detail=shown)
        case _:
            return ProviderError(f"{text} Is SENDGRID_BASE_URL right?", detail=shown)


def reasons(body: bytes) -> str:
    """The messages of the `errors` in the body, each with the field it is about."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    errors = said.get("errors") if isinstance(said, dict) else None
    found = []
    for each in errors if isinstance(errors, list) else ():
        if isinstance(each, dict) and each.get("message"):
            field = f"{each['field']}: " if each.get("field") else ""
            found.append(f"{field}{each['message']}")
    return "; ".join(found)


def wait(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until `X-RateLimit-Reset`, a Unix time."""
    try:
        until = float(headers.get("x-ratelimit-reset", ""))
    except ValueError:
        return None
    return max(0.0, until - now) if math.isfinite(until) else None
