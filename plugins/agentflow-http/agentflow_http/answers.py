"""From an answer to a result: JSON is the output, text the text, anything else a file."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from agentflow import Artifact, ProviderError, Result
from agentflow_http.asking import Ask
from agentflow_http.auth import Redaction
from agentflow_http.pointer import at, every
from agentflow_http.wire import Answer

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}")


def result_of(answer: Answer, ask: Ask, redaction: Redaction) -> Result:
    """Raises `ProviderError` for an answer that is not what was expected."""
    media_type = answer.type.partition(";")[0].strip().lower()
    expect = _kind(media_type, answer.body) if ask.expect == "auto" else ask.expect
    match expect:
        case "json":
            found = document(answer)
            if found is _NO_JSON:
                if ask.expect == "json" or ask.output is not None:
                    raise ProviderError(f"HTTP {answer.status}, and the answer is no JSON.")
                return Result(text=redaction.text(_text(answer)))
            return Result(output=redaction.document(_part(found, ask.output)))
        case "text":
            return Result(output={"status": answer.status}, text=redaction.text(_text(answer)))
        case "file":
            shown = {"status": answer.status, "media_type": media_type or None}
            return Result(output=shown, artifacts=[_file(answer, media_type, ask.url)])
        case _:
            return Result(output={"status": answer.status})


_NO_JSON = object()


def document(answer: Answer) -> Any:
    """The JSON of the body, or a mark that there is none."""
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return _NO_JSON


def is_json(found: Any) -> bool:
    return found is not _NO_JSON


def files(result: Any, places: list[str]) -> list[Artifact]:
    """The files whose URLs are at these places of a result."""
    found = [each for place in places for each in every(result, place)]
    return [
        Artifact(url, _name(url))
        for url in found
        if isinstance(url, str) and url.startswith(("https://", "http://", "data:"))
    ]


def _kind(media_type: str, body: bytes) -> str:
    if not body:
        return "nothing"
    if media_type == "application/json" or media_type.endswith("+json"):
        return "json"
    plain = ("application/xml", "application/x-www-form-urlencoded")
    return "text" if media_type.startswith("text/") or media_type in plain else "file"


def _part(found: Any, place: str | None) -> Any:
    if place is None:
        return found
    parts = list(every(found, place))
    if "*" in place.split("/"):
        return parts
    if not parts:
        raise ProviderError(f"The answer has nothing at {place}.")
    return at(found, place)


def _text(answer: Answer) -> str:
    charset = re.search(r"charset=\"?([\w.:-]+)", answer.type, re.I)
    try:
        return answer.body.decode(charset[1] if charset else "utf-8", errors="replace")
    except (LookupError, ValueError):
        return answer.body.decode(errors="replace")


def _file(answer: Answer, media_type: str, url: str) -> Artifact:
    kind = media_type if _MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"
    coded = base64.b64encode(answer.body).decode()
    return Artifact(f"data:{kind};base64,{coded}", _name(url), kind)


def _name(url: str) -> str | None:
    if url.startswith("data:"):
        return None
    try:
        return unquote(urlsplit(url).path).rpartition("/")[2] or None
    except ValueError:
        return None
