"""From what a plugin's function returned or raised to a fact that can be stored."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson
from pydantic import BaseModel, SecretStr

from agentflow.core.cleaning import clean, cleaned
from agentflow.core.events import Accepted, Canceled, Changed, Failed, Progressed, Succeeded
from agentflow.core.language import ModelReply
from agentflow.core.providers import Outcome, Task
from agentflow.core.results import ErrorInfo, Result
from agentflow.core.soundness import sound
from agentflow.errors import (
    AuthenticationFailed,
    CallTimeout,
    InvalidInput,
    OutcomeUnknown,
    PermissionRefused,
    PluginError,
    ProviderError,
    ProviderFailure,
    QuotaExceeded,
    RateLimited,
    Unavailable,
    Unstorable,
)
from agentflow.plugins.catalogue import Ready
from agentflow.plugins.patience import spoken
from agentflow.types import utcnow

MAX_MESSAGE = 2000
LONGEST_WAIT = 86_400.0
MAX_WORDS = 300
"""Characters of a provider's answer in an error that nobody has translated."""

_BY_STATUS: dict[int, type[ProviderFailure]] = {
    401: AuthenticationFailed,
    402: QuotaExceeded,
    403: PermissionRefused,
    429: RateLimited,
}

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CANNOT_SEND = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)


def outcome_of(returned: Any, task: Task[Any]) -> Outcome:
    """What a call came to. Raises `Unstorable` for what is no JSON or no sound fact,
    `ProviderError` for what does not fit the task's kind."""
    outcome = _sound(_outcome(returned))
    if isinstance(outcome, Succeeded):
        task.check(outcome.result.output)
    return outcome


def _outcome(returned: Any) -> Outcome:
    match returned:
        case Accepted() | Succeeded() | Failed() | Canceled():
            return returned
        case Progressed(external_id=str(id)) | Changed(external_id=str(id)):
            return Accepted(id)
        case Progressed() | Changed():
            raise PluginError("The task returned a fact about work under way without its id.")
        case Result():
            return Succeeded(returned)
        case ModelReply():
            return Succeeded(returned.result())
        case BaseModel():
            return Succeeded(Result(output=returned.model_dump(mode="json")))
        case _:
            return Succeeded(Result(output=returned))


def _sound(outcome: Outcome) -> Outcome:
    """The outcome clean, and as it will be read back."""
    try:
        return sound(cleaned(outcome))
    except (AttributeError, TypeError, ValueError) as error:
        raise Unstorable(f"What the task returned cannot be kept: {error}") from None


def news_of(returned: Any, task: Task[Any]) -> Outcome | None:
    """What a `fetch` or `cancel` says; None is no news."""
    match returned:
        case None:
            return None
        case Progressed() | Changed() | Accepted():
            return _sound(returned)
        case _:
            return outcome_of(returned, task)


def failure_of(error: BaseException, ready: Ready, task: Task[Any], *, unsure: bool) -> ErrorInfo:
    """The error in our words: as raised, by the plugin's own table, or by what is known of HTTP.

    `unsure` says that an unrepeatable call may have left, so that whatever is not known to have
    had no effect is `outcome_unknown`.
    """
    failure = error if isinstance(error, ProviderFailure) else None
    if failure is None and isinstance(error, Exception):
        failure = _translated(error, ready) or _http(error, ready.settings, unsure=unsure)
    if failure is None:
        said = spoken(error)
        if isinstance(error, TimeoutError):
            said = f"No answer within {task.policy.timeout:g} seconds"
            failure = OutcomeUnknown(said) if unsure else CallTimeout(said)
        else:
            failure = OutcomeUnknown(said) if unsure else ProviderError(said)
    info = ErrorInfo.of(failure)
    message = clean(redacted(str(info.message), ready.settings))[:MAX_MESSAGE]
    again = bool(info.retryable)
    detail = _detail(info, ready.settings)
    return ErrorInfo(info.kind, message, again, _seconds(info.retry_after), detail)


def redacted(text: str, settings: Any) -> str:
    """The text without any secret of the provider's settings."""
    if not isinstance(settings, BaseModel):
        return text
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            whole = value.get_secret_value()
            for secret in [whole, *whole.replace(",", " ").split()]:
                if len(secret.strip()) >= 6:
                    text = text.replace(secret.strip(), "***")
    return text


def _all_redacted(value: Any, settings: Any) -> Any:
    match value:
        case str():
            return redacted(value, settings)
        case dict():
            return {name: _all_redacted(part, settings) for name, part in value.items()}
        case list() | tuple():
            return [_all_redacted(part, settings) for part in value]
        case _:
            return value


def _seconds(wait: Any) -> float | None:
    """What a plugin says of the time to wait, if it can be one."""
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not math.isfinite(wait):
        return None
    return max(0.0, float(wait))


def _detail(info: ErrorInfo, settings: Any) -> dict[str, Any]:
    try:
        detail: dict[str, Any] = _all_redacted(clean(dict(info.detail)), settings)
        return detail if len(orjson.dumps(detail)) <= 8192 else {}
    except (TypeError, ValueError, RecursionError):
        return {}


def _translated(error: Exception, ready: Ready) -> ProviderFailure | None:
    translator = ready.provider.translator
    if translator is None:
        return None
    try:
        found: Any = translator(error)
    except Exception:  # a translator that fails has translated nothing
        return None
    return found if isinstance(found, ProviderFailure) else None


def _http(error: Exception, settings: Any, *, unsure: bool) -> ProviderFailure | None:
    """For plugins that use `call.http` and say nothing themselves."""
    if isinstance(error, _NEVER_SENT):
        return Unavailable(f"Cannot connect: {error}")
    if isinstance(error, _CANNOT_SEND):
        return ProviderError(f"Cannot send: {error}")
    if isinstance(error, httpx.TransportError):
        said = f"{type(error).__name__}: {error}"
        return OutcomeUnknown(said) if unsure else Unavailable(said)
    if not isinstance(error, httpx.HTTPStatusError):
        return None
    status = error.response.status_code
    said = f"HTTP {status} from {error.request.url.host}{_words(error.response, settings)}"
    if status in _BY_STATUS:
        return _BY_STATUS[status](said, retry_after=retry_after(error.response))
    if status < 500 and status != 408:
        return InvalidInput(said)
    wait = retry_after(error.response)
    turned_away = status == 503 and wait is not None  # it says itself that it did nothing
    if unsure and not turned_away:
        return OutcomeUnknown(said)
    return Unavailable(said, retry_after=wait)


def _words(response: httpx.Response, settings: Any) -> str:
    """What the provider says about it, on a line; not a page for people."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "text/plain" or kind.endswith("json")):
        return ""
    try:
        text = " ".join(redacted(response.text, settings).split())  # before a secret is cut in two
    except httpx.StreamError:  # nobody has read it
        return ""
    return f": {text[:MAX_WORDS]}" if text else ""


def retry_after(response: httpx.Response) -> float | None:
    """Seconds from a `Retry-After` (RFC 9110, 10.2.3), a number or a date: by the clock of who
    sent it, where it says what that shows."""
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit() and len(value) < 12:
        return min(float(value), LONGEST_WAIT)
    until, now = _date(value), _date(response.headers.get("date", "")) or utcnow()
    return None if until is None else min(max(0.0, (until - now).total_seconds()), LONGEST_WAIT)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
