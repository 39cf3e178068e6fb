"""What requests and answers of all of OpenAI's APIs have in common."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from agentflow import InvalidInput, ProviderError, Result

if TYPE_CHECKING:
    from agentflow import Call, ModelRequest

_ARTIFACT = re.compile(r"art_[0-9a-f]{32}_[0-9]{1,6}")

_KINDS = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
)


def mark(call: Call) -> dict[str, str]:
    """The metadata by which work of this attempt is known again."""
    return {"agentflow_job": call.job_id, "agentflow_attempt": str(call.attempt)}


def apart(options: Mapping[str, Any], said: Collection[str]) -> None:
    """Raise `InvalidInput` for options that say what other fields do."""
    if taken := set(said) & options.keys():
        raise InvalidInput(f"options: {', '.join(sorted(taken))} cannot be set there")


def with_options(
    given: Mapping[str, Any], options: Mapping[str, Any], ours: Collection[str]
) -> dict[str, Any]:
    """The body of a request: what is given of the fields, and the options. Raises `InvalidInput`
    for options that are `ours`, or say what a field does."""
    body = {name: value for name, value in given.items() if value is not None}
    apart(options, ours | body.keys())
    return body | dict(options)


def asking(body: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request as arguments of the SDK. Options go as they are, whether this SDK
    knows them or not, and as nothing else: what it takes besides (`extra_headers`, `timeout`) is
    not for who submits a job."""
    known = {name: value for name, value in body.items() if name not in options}
    return {**known, "extra_body": dict(options)}


def is_artifact(text: str) -> bool:
    return _ARTIFACT.fullmatch(text) is not None


async def images_of(call: Call, asked: ModelRequest) -> dict[str, str]:
    """The request's images that are artifacts of ours, by id, as data URLs.

    Raises `InvalidInput` for one that does not exist.
    """
    wanted = {
        part.url
        for message in asked.messages
        if not isinstance(message.content, str)
        for part in message.content
        if part.type == "image" and is_artifact(part.url)
    }
    return {id: data_url(await call.artifact(id)) for id in sorted(wanted)}


def data_url(content: bytes, media_type: str | None = None) -> str:
    """The bytes as a `data:` URL, of the type they begin like."""
    kinds = (kind for at, magic, kind in _KINDS if content[at : at + len(magic)] == magic)
    type = media_type or next(kinds, "application/octet-stream")
    return f"data:{type};base64,{base64.b64encode(content).decode()}"


def fitting(wanted: Any, text: str | None) -> JsonValue:
    """The text as JSON, where JSON was asked for; None if it is none."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind not in ("json_schema", "json_object") or not text:
        return None
    try:
        read: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return read


def numbers(said: Any, names: Sequence[str]) -> dict[str, float]:
    """Those of these members that are numbers."""
    if not isinstance(said, Mapping):
        return {}
    found = {name: said.get(name) for name in names}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def embedded(made: Mapping[str, Any], texts: int | None = None) -> Result:
    """The vectors of an answer, in the order of the `texts`. Raises `ProviderError` unless there
    is one for each; where nobody knows how many there were, for each place."""
    vectors: dict[int, Any] = {}
    data = made.get("data")
    for each in data if isinstance(data, list) else ():
        match each:
            case {"index": int(place), "embedding": vector}:
                vectors[place] = vector
    if not vectors or vectors.keys() != set(range(texts or len(vectors))):
        raise ProviderError("OpenAI's answer does not hold an embedding for each text.")
    usage = numbers(made.get("usage"), ("prompt_tokens",))
    return Result(
        output={"model": made.get("model"), "embeddings": [vectors[n] for n in sorted(vectors)]},
        usage={"input_tokens": usage["prompt_tokens"]} if usage else {},
    )
