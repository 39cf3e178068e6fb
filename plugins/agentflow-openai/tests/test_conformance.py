"""The plugin against the suite, which is all there is to say that it is done."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from agentflow_openai import provider
from agentflow_openai.simulator import OpenAISimulator

from agentflow.testing import Ends, Order, PluginConformance

ASK = {"model": "gpt-x", "messages": [{"role": "user", "content": "hello"}]}
TOOL = {
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}
USAGE = {"input_tokens": 12, "output_tokens": 7, "cached_input_tokens": 4, "reasoning_tokens": 2}


def respond(*, background: bool = False, **script: Any) -> dict[str, Any]:
    """A response that does what the script says."""
    return {**ASK, "background": background, "metadata": {"simulate": json.dumps(script)}}


def batch(*words: str, **script: Any) -> dict[str, Any]:
    """A batch of a request for each word, the whole of it as the script says."""
    said = [{"role": "user", "content": word} for word in words]
    items = [
        {"custom_id": f"n{n}", "request": {"model": "gpt-x", "messages": [each]}}
        for n, each in enumerate(said)
    ]
    return {"items": items, "metadata": {"simulate": json.dumps(script)}}


KINDS = {
    "authentication": ("OAuthError",),
    "unavailable": ("OpenAIError", "WebSocketQueueFullError", "InvalidWebhookSignatureError"),
    # Those that have a status are made with an answer 500 of a gateway.
    "outcome_unknown": (
        "APIError",
        "APIConnectionError",
        "APIResponseValidationError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "ConflictError",
        "ContentFilterFinishReasonError",
        "InternalServerError",
        "LengthFinishReasonError",
        "NotFoundError",
        "PermissionDeniedError",
        "RateLimitError",
        "UnprocessableEntityError",
        "WebSocketConnectionClosedError",
    ),
}

ENDS = (
    ({"outcome": "failed", "code": "bio_policy"}, "failed", "content_rejected"),
    ({"outcome": "failed", "code": "invalid_prompt"}, "failed", "invalid_input"),
    ({"outcome": "failed", "code": "odd"}, "failed", "provider_error"),
    ({"outcome": "incomplete", "reason": "content_filter"}, "failed", "content_rejected"),
)


def ends(*, background: bool) -> tuple[Ends, ...]:
    cut = {"output": {"finish": "length"}, "text": "You said: hello"}
    return (
        *(Ends(respond(background=background, **s), status, kind) for s, status, kind in ENDS),
        Ends(respond(background=background, outcome="incomplete"), "succeeded", result=cut),
        Ends(
            {**respond(background=background, tool="look_up"), "tools": [TOOL]},
            "succeeded",
            result={"output": {"tool_calls": [{"name": "look_up", "arguments": {"query": str}}]}},
        ),
        Ends(
            {**respond(background=background, text='{"a": 1}'), "output_schema": {}},
            "succeeded",
            result={"output": {"output": {"a": 1}}},
        ),
    )


class TestOpenAI(PluginConformance):
    provider = provider
    simulator = staticmethod(lambda: OpenAISimulator(key="sk-of-the-conformance-suite"))
    webhook_setting = "OPENAI_WEBHOOK_SECRET"
    errors = ("openai", "httpx2")
    error_kinds: ClassVar[dict[str, str]] = {
        f"openai.{name}": kind for kind, names in KINDS.items() for name in names
    }
    orders = (
        Order(
            "respond",
            respond(),
            result={"text": "You said: hello", "usage": USAGE, "output": {"finish": "stop"}},
            ends=ends(background=False),
            refused=({"messages": []}, {**ASK, "no": 1}),
        ),
        Order(
            "respond",
            respond(background=True, seconds=0.2),
            later=True,
            result={"text": "You said: hello", "usage": USAGE},
            slow=respond(background=True, seconds=20),
            ends=ends(background=True),
        ),
        Order(
            "chat",
            ASK,
            result={
                "text": "You said: hello",
                "usage": {"input_tokens": 9, "output_tokens": 3},
                "output": {"finish": "stop"},
            },
            ends=(
                Ends(
                    {**ASK, "messages": [{"role": "user", "content": "reject"}]},
                    error="content_rejected",
                ),
                Ends(
                    {**ASK, "tools": [TOOL], "tool_choice": "required"},
                    "succeeded",
                    result={
                        "output": {
                            "finish": "tool_calls",
                            "tool_calls": [{"name": "look_up", "arguments": {"a": 1}}],
                        }
                    },
                ),
                Ends(
                    {**ASK, "output_schema": {"type": "object"}},
                    "succeeded",
                    result={"output": {"output": {"said": "hello"}}},
                ),
            ),
        ),
        Order(
            "batch",
            batch("one", "two"),
            later=True,
            result={
                "output": {
                    "counts": {"total": 2, "succeeded": 2, "failed": 0},
                    "items": [
                        {"custom_id": "n0", "reply": {"text": "You said: one"}},
                        {"custom_id": "n1", "reply": {"text": "You said: two"}},
                    ],
                },
                "usage": {"input_tokens": 24, "output_tokens": 14},
            },
            slow=batch("one", outcome="never"),
            refused=({"items": []}, {"items": [{"custom_id": "x"}]}),
        ),
        Order(
            "embed",
            {"model": "embed-x", "input": ["a", "four"]},
            result={
                "output": {"embeddings": [[1.0, 0.5], [4.0, 0.5]]},
                "usage": {"input_tokens": 2},
            },
        ),
        Order(
            "image",
            {"prompt": "a cat", "n": 2},
            result={
                "artifacts": [{"media_type": "image/png"}, {"media_type": "image/png"}],
                "usage": {"output_tokens": 100},
            },
        ),
        Order(
            "speech",
            {"input": "hello"},
            result={"artifacts": [{"name": "speech.mp3"}], "usage": {"characters": 5}},
        ),
        Order(
            "transcribe",
            {"artifact": b"what was said"},
            result={"text": "what was said", "output": {"text": "what was said"}},
        ),
    )
