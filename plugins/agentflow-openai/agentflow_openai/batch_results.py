"""What comes out of a batch: OpenAI's two files become one, a line for every request.

OpenAI writes what succeeded into one file and what failed into another, in any order, and leaves
out what it never came to. Here every request has its line, in the order of the input. The lines
wait in a temporary file, so that a batch of any size needs little memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import orjson

from agentflow import (
    CallTimeout,
    ContentRejected,
    InvalidInput,
    ModelRequest,
    ProviderError,
    ProviderFailure,
    Result,
    ResultLost,
    Succeeded,
)
from agentflow_openai import chats, responses
from agentflow_openai.content import embedded, numbers
from agentflow_openai.failures import refusal

_WORDS = {"role": "user", "content": "-"}
_ASKED = {
    wants: ModelRequest.model_validate(
        {"model": "-", "messages": [_WORDS], "output_schema": {} if wants else None}
    )
    for wants in (False, True)
}
"""A request whose answer is to be JSON, and one whose answer is not."""


@dataclass(slots=True)
class Results:
    """The lines read so far. `wanted` are the requests, in order, and whether each asked for JSON;
    empty if the input is gone. `ended` is the batch's final status."""

    endpoint: str
    ended: str
    wanted: Mapping[str, bool]
    file: IO[bytes]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    size: int = 0
    pictures: bool = False
    """Whether an answer holds any."""

    def read(self, line: bytes) -> None:
        """One line of OpenAI's. Of two about one request, the first counts; nonsense is left out,
        so that its request is among those without an answer."""
        try:
            said = orjson.loads(line)
        except ValueError:
            return
        id = said.get("custom_id") if isinstance(said, dict) else None
        if isinstance(id, str) and id not in self.places and (id in self.wanted or not self.wanted):
            self._write(id, entry(said, self.endpoint, json=self.wanted.get(id, False)))

    def complete(self) -> None:
        """Say of each request without an answer that there is none."""
        for id in self.wanted:
            if id not in self.places:
                self._write(id, _failed(id, _unanswered(self.ended)))

    def _write(self, id: str, entry: dict[str, Any]) -> None:
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        self.places[id] = (self.size, len(line))
        self.file.write(line)
        self.size += len(line)
        self.pictures |= "pictures" in entry
        self.counts["succeeded" if entry["ok"] else "failed"] += 1
        for name, value in entry["usage"].items():
            self.usage[name] += value

    async def lines(self) -> AsyncIterator[bytes]:
        """All lines, in the order of the requests."""
        for id in self.wanted or self.places:
            start, length = self.places[id]
            self.file.seek(start)
            yield self.file.read(length)

    async def items(self) -> list[Any]:
        """The same as values."""
        return [orjson.loads(line) async for line in self.lines()]


def wanted(line: bytes) -> tuple[str, bool] | None:
    """The `custom_id` of a line of the input, and whether it asks Chat Completions for JSON (the
    Responses API repeats that in its answer). None for nonsense."""
    try:
        said = orjson.loads(line)
    except ValueError:
        return None
    match said:
        case {"custom_id": str(id), "body": {"response_format": {"type": str(kind)}}}:
            return id, kind in ("json_schema", "json_object")
        case {"custom_id": str(id)}:
            return id, False
    return None


def entry(said: Mapping[str, Any], endpoint: str, *, json: bool = False) -> dict[str, Any]:
    """`{custom_id, ok, reply, error, usage}` of one line of OpenAI's output or error file, and
    `pictures` that were drawn on the way, as data URLs: they go into the file alone."""
    id = said["custom_id"]
    answer = said.get("response")
    if not isinstance(answer, Mapping):
        return _failed(id, _unmade(said.get("error")))
    status, body = answer.get("status_code"), answer.get("body")
    if not isinstance(status, int) or not 200 <= status < 300 or not isinstance(body, Mapping):
        return _failed(id, _refused(status, body))
    try:
        made = _made(body, endpoint, json)
    except ProviderFailure as failure:
        return _failed(id, failure)
    whole = {"custom_id": id, "ok": True, "reply": made.output, "error": None, "usage": made.usage}
    return whole | ({"pictures": [each.url for each in made.artifacts]} if made.artifacts else {})


def _made(body: Mapping[str, Any], endpoint: str, json: bool) -> Result:
    """What the same request alone would have come to. Raises `ProviderFailure`."""
    match endpoint:
        case "/v1/responses":
            state = responses.fact(body)
            if isinstance(state, Succeeded):
                return state.result
            raise _of_response(body)
        case "/v1/chat/completions":
            return chats.reply(body, _ASKED[json]).result()
        case "/v1/embeddings":
            return embedded(body)
        case _:
            usage = numbers(body.get("usage"), ("input_tokens", "output_tokens"))
            return Result(output=dict(body), usage=usage)


def _of_response(body: Mapping[str, Any]) -> ProviderFailure:
    """Why a response is no success."""
    if body.get("status") == "failed":
        return responses.failed(body.get("error"))
    if body.get("status") == "incomplete":
        return ContentRejected("OpenAI's filter stopped the answer.")
    return ProviderError(f"The response came back {body.get('status')!r}.")


def _refused(status: Any, body: Any) -> ProviderFailure:
    error = body.get("error") if isinstance(body, Mapping) else None
    said = error if isinstance(error, Mapping) else {}
    code = said.get("code")
    return refusal(
        status if isinstance(status, int) else 0,
        str(said.get("message") or "")[:1000],
        code=code if isinstance(code, str) else None,
        create=False,
    )


def _unmade(error: Any) -> ProviderFailure:
    """Why a request of the batch was not made."""
    said = error if isinstance(error, Mapping) else {}
    text = str(said.get("message") or "OpenAI says no reason.")[:1000]
    code = said.get("code")
    detail = {"code": code} if isinstance(code, str) else {}
    match code:
        case "batch_expired":
            return CallTimeout(text, detail=detail)
        case "batch_cancelled":
            return ProviderError(text, retryable=True, detail=detail)
        case str() if code.startswith("invalid"):
            return InvalidInput(text, detail=detail)
        case _:
            return ProviderError(text, detail=detail)


def _unanswered(ended: str) -> ProviderFailure:
    match ended:
        case "expired":
            return CallTimeout("The batch expired before this request was made.")
        case _:
            return ResultLost("OpenAI's files hold no answer to this request.")


def _failed(id: str, failure: ProviderFailure) -> dict[str, Any]:
    told = {"kind": failure.kind, "message": failure.message, "retryable": failure.retryable}
    return {"custom_id": id, "ok": False, "reply": None, "error": told, "usage": {}}
