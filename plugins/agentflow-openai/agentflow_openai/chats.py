"""Between `ModelRequest`, `ModelReply` and OpenAI's Chat Completions, which many others speak."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentflow import (
    ContentRejected,
    ModelMessage,
    ModelReply,
    ModelRequest,
    ProviderError,
    ToolCall,
)
from agentflow_openai.content import fitting, numbers, with_options

OURS = frozenset({"model", "messages", "tools", "stream", "n", "response_format"})
"""Parameters that `options` may not set, because other fields do."""

_FINISH: Mapping[Any, Any] = {"length": "length", "content_filter": "content_filter"}


def arguments(asked: ModelRequest, images: Mapping[str, str]) -> dict[str, Any]:
    """What `chat.completions.create` is given. `images` maps ids of artifacts to data URLs.

    Raises `InvalidInput` for options that other fields say.
    """
    given: dict[str, Any] = {
        "model": asked.model,
        "messages": [_message(message, images) for message in asked.messages],
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "tool_choice": asked.tool_choice,
        "response_format": _format(asked),
    }
    if asked.tools:
        given["tools"] = [
            {"type": "function", "function": tool.model_dump(mode="json")} for tool in asked.tools
        ]
    return with_options(given, asked.options, OURS)


def _format(asked: ModelRequest) -> dict[str, Any] | None:
    if asked.output_schema is None:
        return None
    schema = {"name": "output", "schema": asked.output_schema, "strict": False}
    return {"type": "json_schema", "json_schema": schema}


def _message(message: ModelMessage, images: Mapping[str, str]) -> dict[str, Any]:
    content: Any = message.content
    if not isinstance(content, str):
        content = [
            {"type": "text", "text": part.text}
            if part.type == "text"
            else {"type": "image_url", "image_url": {"url": images.get(part.url, part.url)}}
            for part in content
        ]
    said: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.malformed or json.dumps(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return said


class Completion:
    """The completion that the chunks of a stream make, as the API gives it without one."""

    def __init__(self) -> None:
        self._text: dict[str, list[str]] = {}
        self._calls: dict[Any, dict[str, str]] = {}
        self._about: dict[str, Any] = {}
        self._reason: str | None = None

    @property
    def finished(self) -> bool:
        return self._reason is not None

    def add(self, chunk: Mapping[str, Any]) -> str:
        """Take the next one; returns what it adds to the text."""
        self._about |= {k: v for k in ("model", "usage") if (v := chunk.get(k)) is not None}
        match chunk.get("choices"):
            case [{"delta": {} as delta, **choice}, *_]:
                pass
            case _:
                return ""
        if isinstance(reason := choice.get("finish_reason"), str):
            self._reason = reason
        for name in ("content", "refusal"):
            if isinstance(said := delta.get(name), str):
                self._text.setdefault(name, []).append(said)
        for each in delta.get("tool_calls") or ():
            self._add_call(each)
        return str(delta.get("content") or "")

    def _add_call(self, said: Any) -> None:
        """The first piece of a call has its id and name; the text of its arguments goes on."""
        if not isinstance(said, Mapping):
            return
        call = self._calls.setdefault(said.get("index"), {"id": "", "name": "", "arguments": ""})
        function = said.get("function")
        pieces = {**(function if isinstance(function, Mapping) else {}), "id": said.get("id")}
        for name in call:
            if isinstance(piece := pieces.get(name), str):
                call[name] = call[name] + piece if name == "arguments" else call[name] or piece

    def json(self) -> dict[str, Any]:
        message: dict[str, Any] = {name: "".join(said) for name, said in self._text.items()}
        message["tool_calls"] = [
            {"id": call.pop("id"), "type": "function", "function": call}
            for call in (dict(each) for each in self._calls.values())
        ]
        return {**self._about, "choices": [{"message": message, "finish_reason": self._reason}]}


def reply(completion: Mapping[str, Any], asked: ModelRequest) -> ModelReply:
    """The first choice. Raises `ContentRejected`, `ProviderError` where there is none."""
    match completion.get("choices"):
        case [{"message": {} as message, "finish_reason": reason}, *_]:
            pass
        case _:
            raise ProviderError("The answer holds no choice.")
    if reason == "content_filter" and not message.get("content"):
        raise ContentRejected("OpenAI's filter stopped the answer.")
    text = message.get("content") if isinstance(message.get("content"), str) else None
    refusal, model = message.get("refusal"), completion.get("model")
    calls = _calls(message.get("tool_calls"))
    return ModelReply(
        text=text,
        tool_calls=calls,
        output=fitting(_format(asked), text),
        refusal=refusal if isinstance(refusal, str) else None,
        finish="tool_calls" if calls else _FINISH.get(reason, "stop"),
        model=model if isinstance(model, str) else None,
        usage=tokens(completion.get("usage")),
    )


def _calls(said: Any) -> list[ToolCall]:
    found: list[ToolCall] = []
    for each in said if isinstance(said, list) else ():
        match each:
            case {"id": str(id), "function": {"name": str(name), "arguments": str(text)}}:
                found.append(ToolCall.read(id, name, text))
    return found


def tokens(usage: Any) -> dict[str, float]:
    """The tokens of a `usage`, by the names that every model task has."""
    counted = numbers(usage, ("prompt_tokens", "completion_tokens"))
    ours = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
    found = {ours[name]: value for name, value in counted.items()}
    details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
    cached = numbers(details, ("cached_tokens",)).get("cached_tokens")
    return {**found, **({"cached_input_tokens": cached} if cached else {})}
