"""Between `ModelRequest`, `ModelReply` and OpenAI's Responses API.

The shapes are those of the API reference, "Responses". Nothing here assumes that a value that comes
back has the right type.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from agentflow import (
    Artifact,
    Canceled,
    Changed,
    ContentRejected,
    Failed,
    InvalidInput,
    ModelMessage,
    ModelReply,
    ModelRequest,
    Progressed,
    ProviderError,
    ProviderFailure,
    RateLimited,
    Result,
    Succeeded,
    ToolCall,
    Unavailable,
)
from agentflow_openai.content import fitting, numbers, with_options
from agentflow_openai.failures import REJECTED

State: TypeAlias = Progressed | Changed | Succeeded | Failed | Canceled

OURS = frozenset({"model", "input", "tools", "background", "stream", "metadata", "text"})
"""Parameters that `options` may not set, because other fields do."""


def arguments(asked: ModelRequest, images: Mapping[str, str]) -> dict[str, Any]:
    """What `responses.create` is given. `images` maps ids of artifacts to data URLs.

    Raises `InvalidInput` for options that other fields say.
    """
    given: dict[str, Any] = {
        "model": asked.model,
        "input": [item for message in asked.messages for item in _items(message, images)],
        "max_output_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "tool_choice": asked.tool_choice,
    }
    if asked.tools:
        given["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": False,
            }
            for tool in asked.tools
        ]
    if asked.output_schema is not None:
        schema = {"name": "output", "schema": asked.output_schema, "strict": False}
        given["text"] = {"format": {"type": "json_schema", **schema}}
    return with_options(given, asked.options, OURS)


def _items(message: ModelMessage, images: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The input items of one message: its text, then each tool call for itself."""
    if message.role == "tool":
        yield {
            "type": "function_call_output",
            "call_id": message.tool_call_id,
            "output": message.text,
        }
        return
    if message.content:
        content: Any = message.content
        if not isinstance(content, str):
            content = [
                {"type": "input_text", "text": part.text}
                if part.type == "text"
                else {"type": "input_image", "image_url": images.get(part.url, part.url)}
                for part in content
            ]
        yield {"role": message.role, "content": content}
    for call in message.tool_calls:
        yield {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.malformed or json.dumps(call.arguments),
        }


def fact(response: Mapping[str, Any]) -> State:
    """The state of a response. A status unknown to us is `Changed`."""
    about = identity(response)
    match response.get("status"):
        case "queued" | "in_progress" as status:
            return Progressed(message=status, external_id=about)
        case "completed":
            return Succeeded(result(response, reply(response)), external_id=about)
        case "incomplete":
            return _incomplete(response)
        case "failed":
            return _billed(response, failed(response.get("error")))
        case "cancelled":
            return Canceled(external_id=about)
        case _:
            return Changed(external_id=about)


def identity(response: Any) -> str | None:
    found = response.get("id") if isinstance(response, Mapping) else None
    return found if isinstance(found, str) and found else None


def _incomplete(response: Mapping[str, Any]) -> State:
    """Cut off by the limit of tokens it is an answer all the same; by a filter it is none."""
    details = response.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, Mapping) else None
    if reason == "content_filter":
        return _billed(response, ContentRejected("OpenAI's filter stopped the answer."))
    cut = reply(response).model_copy(update={"finish": "length"})
    return Succeeded(result(response, cut), external_id=identity(response))


def _billed(response: Mapping[str, Any], error: ProviderFailure) -> Failed:
    """It failed, and what it took is billed all the same."""
    used = tokens(response.get("usage")) or None
    return Failed(error, external_id=identity(response), usage=used)


def result(response: Mapping[str, Any], said: ModelReply) -> Result:
    """The reply, with the pictures that OpenAI drew on the way as files of their own."""
    drawn: list[Artifact] = []
    for item in _each(response.get("output")):
        match item:
            case {"type": "image_generation_call", "result": str(encoded)} if encoded:
                kind = item.get("output_format")
                kind = kind if kind in ("png", "jpeg", "webp") else "png"
                url = f"data:image/{kind};base64,{encoded}"
                drawn.append(Artifact(url, f"image-{len(drawn)}.{kind}", f"image/{kind}"))
    return said.result().with_artifacts(drawn)


def reply(response: Mapping[str, Any]) -> ModelReply:
    """The answer: all text, all calls of functions, in order."""
    texts: list[str] = []
    refusals: list[str] = []
    calls: list[ToolCall] = []
    for item in _each(response.get("output")):
        match item:
            case {"type": "function_call", "call_id": str(id), "name": str(name)}:
                calls.append(ToolCall.read(id, name, str(item.get("arguments") or "")))
            case {"type": "message"}:
                for part in _each(item.get("content")):
                    match part:
                        case {"type": "output_text", "text": str(said)}:
                            texts.append(said)
                        case {"type": "refusal", "refusal": str(said)}:
                            refusals.append(said)
    text = "".join(texts) if texts else None
    model = response.get("model")
    return ModelReply(
        text=text,
        tool_calls=calls,
        output=fitting(_format(response), text),
        refusal="".join(refusals) or None,
        finish="tool_calls" if calls else "stop",
        model=model if isinstance(model, str) else None,
        usage=tokens(response.get("usage")),
    )


def _format(response: Mapping[str, Any]) -> Any:
    """What the text was to be: OpenAI repeats it in the response."""
    text = response.get("text")
    return text.get("format") if isinstance(text, Mapping) else None


def failed(error: Any) -> ProviderFailure:
    """Why a response failed; the codes are those of `ResponseError`."""
    said = error if isinstance(error, Mapping) else {}
    code, message = said.get("code"), said.get("message")
    text = f"{message or 'The response failed and says no reason.'}"[:2000]
    detail = {"code": code} if isinstance(code, str) else {}
    match code:
        case "rate_limit_exceeded":
            return RateLimited(text, detail=detail)
        case "server_error" | "vector_store_timeout":
            return Unavailable(text, detail=detail)
        case str() if code in REJECTED:
            return ContentRejected(text, detail=detail)
        case str() if code == "invalid_prompt" or "image" in code:
            return InvalidInput(text, detail=detail)
        case _:
            return ProviderError(text, detail=detail)


def tokens(usage: Any) -> dict[str, float]:
    """The tokens of a `usage`, with those that are billed apart."""
    if not isinstance(usage, Mapping):
        return {}
    found = numbers(usage, ("input_tokens", "output_tokens"))
    more = (
        ("input_tokens_details", "cached_tokens", "cached_input_tokens"),
        ("output_tokens_details", "reasoning_tokens", "reasoning_tokens"),
    )
    for member, name, ours in more:
        counted = numbers(usage.get(member), (name,))
        if counted.get(name):
            found[ours] = counted[name]
    return found


def _each(items: Any) -> Iterator[Mapping[str, Any]]:
    for item in items if isinstance(items, list) else ():
        if isinstance(item, Mapping):
            yield item
