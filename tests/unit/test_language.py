"""What model tasks speak, and what the worker makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from agentflow import ModelMessage, ModelReply, ModelRequest, Provider, ProviderError, ToolCall
from agentflow.core.events import Succeeded
from agentflow.errors import PluginError
from agentflow.worker.outcomes import outcome_of

USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "42"},
        {"role": "user", "content": "x", "tool_call_id": "c"},
        {"role": "user", "tool_calls": [{"id": "c", "name": "f"}]},
        {"role": "robot"},
        {"role": "user", "content": [{"type": "video", "url": "x"}]},
    ],
)
def test_a_message_that_no_model_can_read_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelRequest.model_validate({"model": "m", "messages": [USER, message]})


def test_the_text_of_a_message_is_its_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image", "url": "art"}]
    message = ModelMessage.model_validate({"role": "user", "content": parts})
    assert message.text == "a"


@pytest.mark.parametrize("written", ["{", "[1]", "7", "null", "[" * 100_000])
def test_arguments_that_are_no_object_are_kept_as_written(written: str) -> None:
    call = ToolCall.read("c", "f", written)
    assert (call.arguments, call.malformed) == ({}, written)


def test_arguments_are_read_and_none_are_none() -> None:
    assert ToolCall.read("c", "f", '{"a": 1}').arguments == {"a": 1}
    assert ToolCall.read("c", "f", "") == ToolCall(id="c", name="f")


def model_task() -> Any:
    provider = Provider("acme")

    @provider.task("ask", kind="model")
    async def ask(call: Any, input: ModelRequest) -> Any: ...

    return ask


def test_a_model_task_takes_a_request_and_nothing_else() -> None:
    class Other(BaseModel):
        prompt: str

    assert model_task().input is ModelRequest
    with pytest.raises(PluginError, match="ModelRequest"):
        Provider("acme").task("ask", kind="model", input=Other)


def test_a_reply_is_the_output_with_text_and_usage_where_every_result_has_them() -> None:
    reply = ModelReply(text="hi", usage={"input_tokens": 3})
    outcome = outcome_of(reply, model_task())
    assert isinstance(outcome, Succeeded)
    assert outcome.result.text == "hi"
    assert outcome.result.usage == {"input_tokens": 3}
    assert ModelReply.model_validate(outcome.result.output).text == "hi"


@pytest.mark.parametrize("returned", [None, "hi", {"text": 7}, {"words": "hi"}, [1]])
def test_what_is_no_reply_is_an_error_of_the_provider(returned: Any) -> None:
    with pytest.raises(ProviderError, match="No ModelReply"):
        outcome_of(returned, model_task())
