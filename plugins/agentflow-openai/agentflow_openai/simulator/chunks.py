"""A simulated chat completion as a stream of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentflow.testing.simulator import Streamed
from agentflow_openai.simulator.work import sent_event, words

TOKENS = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


def chunked(
    about: Mapping[str, Any], message: Mapping[str, Any], reason: str, *, usage: bool, fails: bool
) -> Streamed:
    """With the usage in a last chunk if it was asked for. One that `fails` says so half-way."""
    deltas = list(_deltas(message))
    chunks: list[dict[str, Any]] = [_chunk(about, {"role": "assistant"})]
    chunks += [_chunk(about, delta) for delta in deltas[: len(deltas) // 2 if fails else None]]
    if fails:
        chunks.append({"error": {"message": "Simulated failure.", "code": "server_error"}})
    else:
        chunks.append(_chunk(about, {}, reason))
    if usage and not fails:
        chunks.append({**about, "object": "chat.completion.chunk", "choices": [], "usage": TOKENS})
    return Streamed([*map(sent_event, chunks), b"data: [DONE]\n\n"], 0.05)


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for word in words(message["content"] or ""):
        yield {"content": word}
    for n, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        begun = {**call, "function": {**function, "arguments": ""}}
        yield {"tool_calls": [{"index": n, **begun}]}
        for letter in function["arguments"]:
            yield {"tool_calls": [{"index": n, "function": {"arguments": letter}}]}


def _chunk(
    about: Mapping[str, Any], delta: Mapping[str, Any], reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {**about, "object": "chat.completion.chunk", "choices": [choice]}
