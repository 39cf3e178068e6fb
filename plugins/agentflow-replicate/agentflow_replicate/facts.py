"""What a prediction says, in agentflow's words: one translation for webhook, poll, create, cancel.

The shapes are those of Replicate's HTTP reference and of its "receive webhooks" page. Keys may be
absent as well as null, and nothing here assumes that a value has the right type: a webhook is
signed, but that does not make it sensible.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from agentflow import (
    Artifact,
    CallTimeout,
    Canceled,
    Changed,
    ContentRejected,
    Failed,
    Progressed,
    ProviderError,
    ProviderFailure,
    Result,
    ResultLost,
    Succeeded,
)

State: TypeAlias = Progressed | Changed | Succeeded | Failed | Canceled

LONGEST_ERROR = 2000

KEPT = timedelta(hours=1)
"""So long after a prediction ended its output can be had."""

# tqdm writes ` 45%|████▌     | 23/50 [00:01<00:02]`; the last one counts.
_PERCENT = re.compile(r"(\d{1,3})%\s*\|")
_TAIL = 4000

_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)[;,]")
_REJECTED = re.compile(r"\bNSFW\b|flagged as sensitive|\(E005\)", re.IGNORECASE)
# Failures of the platform, not of the model: "Prediction interrupted; please retry (code: PA)",
# "Director: unexpected error handling prediction (E6716)".
_PASSING = re.compile(r"please retry|Director: unexpected error", re.IGNORECASE)

_USAGE = {"predict_time": "predict_seconds", "total_time": "total_seconds"}


def fact(prediction: Mapping[str, Any]) -> State:
    """The state of a prediction, as the JSON of it says. A status unknown to us is `Changed`."""
    about = identity(prediction)
    match prediction.get("status"):
        case "starting" | "processing" as status:
            return Progressed(fraction(prediction.get("logs")), status, external_id=about)
        case "succeeded" if prediction.get("data_removed") is True:
            lost = ResultLost("Replicate removed the output, an hour after the prediction ended.")
            return Failed(lost, external_id=about)
        case "succeeded":
            return Succeeded(result(prediction), external_id=about)
        case "failed":
            billed = usage(prediction.get("metrics"))  # time is billed also where it was in vain
            return Failed(failed(prediction.get("error")), external_id=about, usage=billed or None)
        case "canceled":
            return Canceled(external_id=about)
        case "aborted":
            early = CallTimeout("Replicate gave the prediction up before it started; not billed.")
            return Failed(early, external_id=about)
        case _:
            return Changed(external_id=about)


def identity(prediction: Any) -> str | None:
    """The id of a prediction; None if this is not one."""
    found = prediction.get("id") if isinstance(prediction, Mapping) else None
    return found if isinstance(found, str) and found else None


def ended(prediction: Mapping[str, Any]) -> bool:
    return isinstance(fact(prediction), Succeeded | Failed | Canceled)


def fraction(logs: Any) -> float | None:
    """How far the work is, by the last progress bar in its logs."""
    if not isinstance(logs, str):
        return None
    percents = _PERCENT.findall(logs, max(0, len(logs) - _TAIL))
    return min(int(percents[-1]), 100) / 100 if percents else None


def failed(error: Any) -> ProviderFailure:
    """Why the model or the platform failed."""
    text = str(error or "The prediction failed and says no reason.")[:LONGEST_ERROR]
    if _REJECTED.search(text):
        return ContentRejected(text)
    return ProviderError(text, retryable=bool(_PASSING.search(text)))


def result(prediction: Mapping[str, Any]) -> Result:
    """The output as it is, its text, and every file it points at, in order."""
    output, end = prediction.get("output"), expiry(prediction.get("completed_at"))
    files = [file for text in _strings(output) if (file := artifact(text, end))]
    return Result(
        output=output,
        text=None if files else _text(output),
        artifacts=files,
        usage=usage(prediction.get("metrics")),
    )


def expiry(completed_at: Any) -> datetime | None:
    """When Replicate deletes the output of a prediction; None if it does not say when it ended."""
    try:
        ended = datetime.fromisoformat(completed_at)
        return (ended if ended.tzinfo else ended.replace(tzinfo=UTC)).astimezone(UTC) + KEPT
    except (TypeError, ValueError, OverflowError):
        return None


def artifact(text: str, expires_at: datetime | None = None) -> Artifact | None:
    """The file behind a string of an output; None if it is not a URL and nothing else."""
    if data := _DATA.match(text):
        return Artifact(text, media_type=data[1])
    if not text.startswith(("https://", "http://")) or any(map(str.isspace, text)):
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    name = PurePosixPath(unquote(parts.path)).name or None
    return Artifact(text, name, expires_at=expires_at) if parts.netloc else None


def usage(metrics: Any) -> dict[str, float]:
    """Numbers Replicate counted; `predict_seconds` is what it bills most models by."""
    if not isinstance(metrics, Mapping):
        return {}
    return {
        _USAGE.get(str(name), str(name)): value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _text(output: Any) -> str | None:
    match output:
        case str():
            return output
        case [*parts] if parts and all(isinstance(part, str) for part in parts):
            return "".join(parts)  # language models answer in pieces
        case _:
            return None


def _strings(value: Any) -> Iterator[str]:
    """Every string within some JSON, in order, however deep."""
    todo = [value]
    while todo:
        match todo.pop():
            case str() as text:
                yield text
            case list() as items:
                todo.extend(reversed(items))
            case dict() as members:
                todo.extend(reversed(members.values()))
