"""fal's errors in agentflow's words.

fal writes them in two ways: `{"detail": "...", "error_type": "..."}` where its machines failed,
and `{"detail": [{"loc": [...], "msg": "...", "type": "..."}]}` where the model did. They come as
answers to a call, as results, and as the `payload` of a webhook.
"""

from typing import Any

import httpx
from agentflow import (
    CallTimeout,
    ContentRejected,
    InvalidInput,
    ProviderError,
    ProviderFailure,
    QuotaExceeded,
    Unavailable,
)

CANCELED = "client_cancelled"

KINDS: dict[str, type[ProviderFailure]] = {
    "content_policy_violation": ContentRejected,
    "bad_request": InvalidInput,
    "downstream_service_error": ProviderError,
    "no_media_generated": ProviderError,
    # fal bills none of these, and has tried those of its runners ten times by itself
    "request_timeout": CallTimeout,
    "generation_timeout": CallTimeout,
    "startup_timeout": Unavailable,
    "runner_scheduling_failure": Unavailable,
    "runner_connection_timeout": Unavailable,
    "runner_disconnected": Unavailable,
    "runner_connection_refused": Unavailable,
    "runner_connection_error": Unavailable,
    "runner_incomplete_response": Unavailable,
    "runner_server_error": Unavailable,
    "internal_error": Unavailable,
    "internal_server_error": Unavailable,
    "downstream_service_unavailable": Unavailable,
}


def failure(body: Any, said: object = None) -> ProviderFailure:
    """Why work failed, from the body of the error and what was `said` beside it."""
    types, message = read(body)
    kinds = [KINDS[type] for type in types if type in KINDS]
    listed = isinstance(body, dict) and isinstance(body.get("detail"), list)
    kind = kinds[0] if kinds else InvalidInput if listed else ProviderError
    return kind(message or str(said or "fal says no reason."), detail=body)


def translate(error: Exception) -> ProviderFailure | None:
    """What an HTTP status alone does not tell; the others are judged by it."""
    if not isinstance(error, httpx.HTTPStatusError):
        return None
    types, message = read(body_of(error.response))
    match error.response.status_code:
        case 403 if "exhausted balance" in message.lower():  # fal has no 402
            return QuotaExceeded(message)
        case 400 | 404 | 413 | 422 if "content_policy_violation" in types:
            return ContentRejected(message)
        case 400 | 404 | 413 | 422 if message:
            return InvalidInput(message)
        case _:
            return None


def canceled(body: Any) -> bool:
    return CANCELED in read(body)[0]


def read(body: Any) -> tuple[list[str], str]:
    """The types that an error names, and its message."""
    match body:
        case {"detail": list(entries)}:
            found = [entry for entry in entries if isinstance(entry, dict)]
            return [str(entry.get("type")) for entry in found], "; ".join(map(line, found))
        case {"detail": str(message), "error_type": str(type)}:
            return [type], message
        case {"detail": str(message)}:
            return [], message
        case _:
            return [], ""


def line(entry: dict[str, Any]) -> str:
    """`prompt: field required`."""
    loc = entry.get("loc")
    where = ".".join(str(part) for part in loc if part != "body") if isinstance(loc, list) else ""
    message = str(entry.get("msg") or entry.get("type"))
    return f"{where}: {message}" if where else message


def body_of(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None
