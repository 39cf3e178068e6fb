"""What OpenAI says, in agentflow's words: pure translations."""

from __future__ import annotations

import inspect
from typing import Any

import httpx2
import openai
import orjson
import pytest
from agentflow_openai.chats import Completion
from agentflow_openai.chats import reply as chat_reply
from agentflow_openai.failures import TABLE, failure, meaning, refusal
from agentflow_openai.provider import parse
from agentflow_openai.responses import arguments, fact, reply
from hypothesis import given
from hypothesis import strategies as st

from agentflow import (
    Canceled,
    Changed,
    Delivery,
    Failed,
    InvalidInput,
    ModelRequest,
    Progressed,
    ProviderFailure,
    Succeeded,
)

REQUEST = httpx2.Request("POST", "http://127.0.0.1:9/v1/responses")
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "status", "output", "type", "content", "text", "usage", "error"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def delivery(body: bytes) -> Delivery:
    return Delivery("openai", body)


def event(type: str, id: Any = "resp_1") -> bytes:
    return orjson.dumps({"id": "evt_1", "object": "event", "type": type, "data": {"id": id}})


@pytest.mark.parametrize(
    "type",
    [
        *(f"response.{end}" for end in ("completed", "failed", "cancelled", "incomplete")),
        *(f"batch.{end}" for end in ("completed", "failed", "cancelled", "expired")),
    ],
)
def test_a_webhook_names_what_to_fetch(type: str) -> None:
    (found,) = parse(delivery(event(type)))
    assert (found.event, found.external_id) == (Changed(), "resp_1")


@pytest.mark.parametrize(
    "body",
    [
        event("future.event"),
        event("safety.alert.created"),
        event("response.completed", id=""),
        event("response.completed", id=7),
        b"[]", b"1", b"", b"\xff", b"null", b'{"type": "response.completed"}', b'{"data": []}',
    ],
)  # fmt: skip
def test_what_is_not_about_our_work_is_nobody_s(body: bytes) -> None:
    assert list(parse(delivery(body))) == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("queued", Progressed),
        ("in_progress", Progressed),
        ("completed", Succeeded),
        ("incomplete", Succeeded),
        ("failed", Failed),
        ("cancelled", Canceled),
        ("pondering", Changed),
        (None, Changed),
    ],
)
def test_every_status_has_its_fact(status: Any, kind: type) -> None:
    state = fact({"id": "resp_1", "status": status})
    assert isinstance(state, kind)
    assert state.external_id == "resp_1"


@given(JSON)
def test_no_answer_breaks_the_translation(said: Any) -> None:
    if isinstance(said, dict):
        for status in ("completed", "incomplete", "failed", said.get("status")):
            fact({**said, "status": status})


def test_an_answer_that_is_cut_off_says_so_and_one_that_is_filtered_fails() -> None:
    cut = fact({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}})
    assert isinstance(cut, Succeeded)
    assert cut.result.output["finish"] == "length"  # type: ignore[call-overload,index]
    rejected = fact({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}})
    assert isinstance(rejected, Failed)
    assert rejected.error.kind == "content_rejected"


BILLED = {"input_tokens": 9, "output_tokens": 3}


@pytest.mark.parametrize(
    "said",
    [
        {"status": "failed", "error": {"code": "server_error"}},
        {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
    ],
)
def test_what_failed_was_billed_all_the_same(said: Any) -> None:
    billed = fact({**said, "usage": BILLED})
    free = fact(said)
    assert isinstance(billed, Failed)
    assert isinstance(free, Failed)
    assert (billed.usage, free.usage) == (BILLED, None)


def test_text_tool_calls_refusals_and_json_are_told_apart() -> None:
    said = reply({
        "text": {"format": {"type": "json_schema"}},
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [
                {"type": "output_text", "text": '{"a":'}, {"type": "output_text", "text": " 1}"},
                {"type": "refusal", "refusal": "no"},
            ]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 2}'},
        ],
        "usage": {"input_tokens": 5, "output_tokens": True,
                  "input_tokens_details": {"cached_tokens": 2}},
    })  # fmt: skip
    assert said.text == '{"a": 1}'
    assert said.output == {"a": 1}
    assert said.refusal == "no"
    assert said.tool_calls[0].arguments == {"x": 2}
    assert said.finish == "tool_calls"
    assert said.usage == {"input_tokens": 5, "cached_input_tokens": 2}


@pytest.mark.parametrize("said", [{}, {"choices": []}, {"choices": [{}]}, {"choices": "x"}])
def test_a_completion_without_a_choice_is_an_error_of_the_provider(said: Any) -> None:
    asked = ModelRequest.model_validate({"model": "m", "messages": [{"role": "user"}]})
    with pytest.raises(ProviderFailure, match="no choice"):
        chat_reply(said, asked)


def test_a_conversation_with_tools_is_written_as_the_api_wants_it() -> None:
    asked = ModelRequest.model_validate({
        "model": "m", "output_schema": {"type": "object"},
        "tools": [{"name": "f", "parameters": {"type": "object"}}],
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": [{"type": "image", "url": "art_1"}]},
            {"role": "assistant", "tool_calls": [{"id": "c", "name": "f", "arguments": {"x": 1}}]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
    })  # fmt: skip
    given = arguments(asked, {"art_1": "data:image/png;base64,AA"})
    assert given["input"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [
            {"type": "input_image", "image_url": "data:image/png;base64,AA"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ]  # fmt: skip
    assert given["tools"][0]["name"] == "f"
    assert given["text"]["format"]["type"] == "json_schema"
    assert "temperature" not in given, "what is None is left to OpenAI"


def test_options_cannot_say_what_other_fields_say() -> None:
    asked = ModelRequest.model_validate(
        {"model": "m", "messages": [{"role": "user"}], "options": {"background": True}}
    )
    with pytest.raises(InvalidInput, match="background"):
        arguments(asked, {})


def errors_of(module: Any) -> list[type[Exception]]:
    found = [
        c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ != "builtins"
    ]
    return [c for c in found if issubclass(c, Exception)]


@pytest.mark.parametrize(
    "error", [*errors_of(openai), *errors_of(httpx2)], ids=lambda e: e.__name__
)
def test_the_table_knows_every_error_of_the_sdk(error: type[Exception]) -> None:
    names = [f"{c.__module__.partition('.')[0]}.{c.__qualname__}" for c in error.__mro__]
    assert [n for n in names if n in TABLE] != []


def connection(cause: Exception) -> Exception:
    error = openai.APIConnectionError(request=REQUEST)
    error.__cause__ = cause
    return error


def status_error(status: int, body: Any, **headers: str) -> Exception:
    response = httpx2.Response(status, request=REQUEST, json=body, headers=headers)
    return openai.AsyncOpenAI(api_key="x")._make_status_error_from_response(response)


OWN = {"error": {"message": "no", "type": "t", "code": None}}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (connection(httpx2.ConnectError("x")), "unavailable"),
        (connection(httpx2.ReadError("x")), "outcome_unknown"),
        (openai.APITimeoutError(request=REQUEST), "outcome_unknown"),
        (status_error(500, OWN), "unavailable"),
        (status_error(500, "oops"), "outcome_unknown"),
        (status_error(502, OWN), "outcome_unknown"),
        (status_error(504, OWN), "outcome_unknown"),
        (status_error(408, OWN), "outcome_unknown"),
        (status_error(503, "x", **{"retry-after": "3"}), "unavailable"),
        (status_error(400, OWN), "invalid_input"),
        (status_error(401, OWN), "authentication"),
        (status_error(403, OWN), "permission"),
        (status_error(404, OWN), "invalid_input"),
        (status_error(409, OWN), "unavailable"),
        (status_error(422, OWN), "invalid_input"),
        (status_error(429, OWN), "rate_limited"),
        (status_error(429, {"error": {"code": "insufficient_quota"}}), "quota_exceeded"),
        (status_error(400, {"error": {"code": "content_policy_violation"}}), "content_rejected"),
    ],
)
def test_an_error_says_whether_the_call_may_have_been_paid_for(error: Exception, kind: str) -> None:
    told = failure(error)
    assert told is not None
    assert told.kind == kind


def test_what_is_not_paid_for_is_never_unknown() -> None:
    for error in (connection(httpx2.ReadError("x")), status_error(502, "x")):
        told = failure(error, create=False)
        assert told is not None
        assert (told.kind, told.retryable) == ("unavailable", True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "9"}, 9.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_is_asked_for_is_kept(headers: Any, seconds: float | None) -> None:
    told = failure(status_error(429, OWN, **headers))
    assert told is not None
    assert told.retry_after == seconds


def test_other_errors_are_not_ours_to_judge() -> None:
    assert failure(KeyError("x")) is None
    assert meaning(RuntimeError()) is None
    assert refusal(302, "moved").kind == "provider_error"


def test_a_refusal_of_a_chat_is_told_at_once_and_in_pieces() -> None:
    asked = ModelRequest.model_validate({"model": "m", "messages": [{"role": "user"}]})
    message = {"role": "assistant", "content": None, "refusal": "I will not."}
    whole = {"choices": [{"message": message, "finish_reason": "stop"}]}
    made = Completion()
    for delta in ({"refusal": "I will"}, {"refusal": " not."}):
        assert made.add({"choices": [{"delta": delta}]}) == ""
    made.add({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    for completion in (whole, made.json()):
        said = chat_reply(completion, asked)
        assert (said.text, said.refusal, said.finish) == (None, "I will not.", "stop")


def test_tool_calls_that_come_in_turns_are_kept_apart() -> None:
    asked = ModelRequest.model_validate({"model": "m", "messages": [{"role": "user"}]})
    made = Completion()
    for index, piece in [
        (0, {"id": "a", "function": {"name": "f", "arguments": '{"x":'}}),
        (1, {"id": "b", "function": {"name": "g", "arguments": ""}}),
        (0, {"function": {"arguments": " 1}"}}),
        (1, {"function": {"arguments": "{}"}}),
    ]:
        made.add({"choices": [{"delta": {"tool_calls": [{"index": index, **piece}]}}]})
    calls = chat_reply(made.json(), asked).tool_calls
    assert [(c.id, c.name, c.arguments) for c in calls] == [("a", "f", {"x": 1}), ("b", "g", {})]


@given(st.lists(JSON))
def test_no_chunk_of_a_stream_breaks_the_putting_together(chunks: list[Any]) -> None:
    whole = Completion()
    for said in chunks:
        for chunk in (said if isinstance(said, dict) else {}, {"choices": [{"delta": said}]}):
            assert isinstance(whole.add(chunk), str)
    whole.json()
