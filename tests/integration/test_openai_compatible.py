"""Other services that speak OpenAI's API, and what they leave out of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.openai import HELLO, KEY, World, world
from support.scripted import Scripted, say, scripted

from agentflow.store import queries

DATABASES = ("sqlite",)

CHOICE = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}


@pytest.fixture
def service() -> Iterator[Scripted]:
    with scripted() as made:
        yield made


@pytest.fixture
async def other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Scripted
) -> AsyncIterator[World]:
    base = f"{service.url}/deep/v2/"
    async with world(
        tmp_path,
        monkeypatch,
        webhooks=False,
        base_url=base,
        allow_downloads=frozenset({service.url.removeprefix("http://")}),
    ) as made:
        yield made


def json_answer(body: Any, status: int = 200) -> Any:
    return say(status, body, content_type="application/json")


async def test_a_chat_of_another_service_is_a_reply(other: World, service: Scripted) -> None:
    service(json_answer({"choices": [CHOICE]}))
    job = await other.ends("openai.chat", HELLO)
    assert (job["status"], job["result"]["text"]) == ("succeeded", "hi")
    assert (job["result"]["usage"], job["cost"]) == ({}, None)
    (asked,) = service.seen
    assert asked.line == "POST /deep/v2/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert "x-stainless-retry-count" not in asked.headers or not int(
        asked.headers["x-stainless-retry-count"]
    )


async def test_tool_calls_without_an_id_are_not_dropped(other: World, service: Scripted) -> None:
    call = {"id": "", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    service(json_answer({"choices": [{"message": message, "finish_reason": "stop"}]}))
    job = await other.ends("openai.chat", {**HELLO, "tools": [{"name": "look"}]})
    assert [c["name"] for c in job["result"]["output"]["tool_calls"]] == ["look"]
    assert job["result"]["output"]["finish"] == "tool_calls"


async def test_a_stream_of_another_service_needs_no_usage_and_no_end_mark(
    other: World, service: Scripted
) -> None:
    chunks: list[Any] = [
        {"choices": [{"delta": {"role": "assistant", "content": "a"}}]},
        {"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]},
    ]
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks)
    service(say(200, body.encode(), content_type="text/event-stream"))
    job = await other.ends("openai.chat", {**HELLO, "stream": True})
    assert (job["status"], job["result"]["text"]) == ("succeeded", "ab")


async def test_an_error_event_is_the_answer_of_a_streamed_response(
    other: World, service: Scripted
) -> None:
    said = {"type": "error", "code": "invalid_prompt", "message": "Not this.", "param": None}
    body = f"event: error\ndata: {json.dumps({**said, 'sequence_number': 1})}\n\n"
    service(say(200, body.encode(), content_type="text/event-stream"))
    job = await other.ends("openai.respond", {**HELLO, "stream": True})
    assert (job["error"]["kind"], job["error"]["message"]) == ("invalid_input", "Not this.")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("task", ["openai.chat", "openai.respond"])
async def test_options_go_as_they_are_and_nowhere_else(
    other: World, service: Scripted, task: str, stream: bool
) -> None:
    """Who submits a job must not choose the headers, the key or the patience of the call."""
    options = {
        "top_k": 3, "reasoning": {"effort": "high"}, "timeout": 0.001,
        "extra_headers": {"Authorization": "Bearer mine"}, "extra_query": {"a": "b"},
        "extra_body": {"model": "dear"},
    }  # fmt: skip
    service(json_answer({"error": {"message": "no such member"}}, 400))
    job = await other.ends(task, {**HELLO, "stream": stream, "options": options})
    assert job["error"]["kind"] == "invalid_input", job
    (asked,) = service.seen
    assert {name: asked.json[name] for name in options} == options
    assert asked.json["model"] == HELLO["model"]
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert "?" not in asked.line


@pytest.mark.parametrize(
    ("task", "input"),
    [
        ("openai.chat", {**HELLO, "temperature": 0.1, "options": {"temperature": 1.0}}),
        ("openai.respond", {**HELLO, "max_output_tokens": 5, "options": {"max_output_tokens": 9}}),
        ("openai.respond", {**HELLO, "options": {"model": "dear"}}),
        ("openai.image", {"prompt": "a hen", "options": {"n": 10}}),
        ("openai.image", {"prompt": "a hen", "options": {"model": "dear"}}),
        ("openai.image", {"prompt": "a hen", "options": {"stream": True}}),
    ],
)
async def test_an_option_cannot_say_what_a_field_says(
    other: World, service: Scripted, task: str, input: Any
) -> None:
    service(json_answer({"choices": [CHOICE]}))
    job = await other.ends(task, input)
    assert job["error"]["kind"] == "invalid_input"
    assert service.seen == []


async def test_a_chat_that_was_filtered_was_billed_all_the_same(
    other: World, service: Scripted
) -> None:
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    service(json_answer({"choices": [choice], "usage": usage}))
    job = await other.ends("openai.chat", HELLO)
    assert job["error"]["kind"] == "content_rejected"
    (entry,) = [e for e in await queries.history("default", job["id"]) if e["event"] == "failed"]
    assert entry["said"]["usage"] == {"input_tokens": 9, "output_tokens": 3}


async def test_a_page_of_somebody_else_says_where_to_look(other: World, service: Scripted) -> None:
    service(say(200, b"<html>welcome</html>", content_type="text/html"))
    job = await other.ends("openai.chat", HELLO)
    assert job["error"]["kind"] == "outcome_unknown"
    assert "OPENAI_BASE_URL" in job["error"]["message"]


async def test_pictures_given_by_url_are_copied_before_they_expire(
    other: World, service: Scripted
) -> None:
    service(
        json_answer({"data": [{"url": f"{service.url}/out.png"}]}),
        say(200, b"\x89PNG\r\n\x1a\n rest"),
    )
    job = await other.ends("openai.image", {"prompt": "a hen"})
    (file,) = job["result"]["artifacts"]
    assert (file["status"], file["media_type"]) == ("stored", "image/png")
    left = datetime.fromisoformat(file["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1)


@pytest.mark.parametrize("places", [[0], [0, 2], [1, 2]])
async def test_embeddings_that_do_not_fit_the_texts_are_an_error_of_the_provider(
    other: World, service: Scripted, places: list[int]
) -> None:
    service(json_answer({"data": [{"index": n, "embedding": [1.0]} for n in places]}))
    job = await other.ends("openai.embed", {"model": "e", "input": ["a", "b"]})
    assert job["error"]["kind"] == "provider_error"
