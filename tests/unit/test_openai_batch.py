"""What goes into a batch and what comes out of it: limits and translations, without a network."""

from __future__ import annotations

import io
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from agentflow_openai import batch_input
from agentflow_openai.batch_input import Batch, Written, numbered, write
from agentflow_openai.batch_results import Results, entry, wanted
from agentflow_openai.batches import _result, invalid, progress
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentflow import Artifact, InvalidInput

ONE = {"custom_id": "a", "body": {"model": "m", "input": "x"}}


class Custody:
    """A call with one file of ours, in pieces of a few bytes."""

    def __init__(self, content: bytes, piece: int = 7) -> None:
        self.content, self.piece = content, piece

    @asynccontextmanager
    async def open_artifact(self, _: str) -> AsyncIterator[AsyncIterator[bytes]]:
        yield pieces(self.content, self.piece)


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def written(content: bytes, **more: Any) -> list[Any]:
    file = io.BytesIO()
    batch = Batch.model_validate({"artifact": "art_" + "a" * 32 + "_0", **more})
    await write(Custody(content), batch, file)  # type: ignore[arg-type] - what a batch needs of it
    return [orjson.loads(line) for line in file.getvalue().splitlines()]


@given(st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b)), st.integers(1, 9))
async def test_lines_are_the_same_however_they_arrive(lines: list[bytes], size: int) -> None:
    found = [line async for line in numbered(pieces(b"\n".join(lines), size))]
    expected = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    assert found == expected


async def test_a_line_without_end_is_refused_before_memory_is_full() -> None:
    with pytest.raises(InvalidInput, match="more than 10 bytes"):
        [line async for line in numbered(pieces(b"x" * 100, 4), 10)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "exactly one of items and artifact"),
        ({"items": [ONE], "artifact": "art_" + "a" * 32 + "_0"}, "exactly one"),
        ({"items": [ONE, ONE]}, "given twice"),
        ({"items": [{"custom_id": "a"}]}, "exactly one of request and body"),
        ({"items": [ONE], "endpoint": "https://elsewhere/v1"}, "pattern"),
        ({"items": [ONE], "endpoint": "/v1/../x"}, "pattern"),
        ({"items": [ONE] * 50_001}, "at most 50000"),
        ({"items": [ONE], "metadata": {f"k{n}": "v" for n in range(14)}}, "at most 13"),
        (
            {
                "items": [
                    {
                        "custom_id": "a",
                        "request": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
                    }
                ],
                "endpoint": "/v1/embeddings",
            },
            "takes a body",
        ),
    ],
)
def test_a_batch_that_cannot_be_is_refused_at_the_submit(wrong: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Batch.model_validate(wrong)


async def test_openai_s_own_lines_and_ours_come_to_the_same() -> None:
    theirs = {**ONE, "method": "POST", "url": "/v1/responses"}
    ours = orjson.dumps({**ONE, "custom_id": "b"})
    assert await written(orjson.dumps(theirs) + b"\n\n" + ours) == [
        theirs,
        {**theirs, "custom_id": "b"},
    ]


async def test_the_limits_are_kept_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    three = b"\n".join(orjson.dumps({**ONE, "custom_id": str(n)}) for n in range(3))
    monkeypatch.setattr(batch_input, "MOST", 2)
    with pytest.raises(InvalidInput, match="at most 2 requests"):
        await written(three)
    monkeypatch.undo()
    monkeypatch.setattr(batch_input, "LARGEST", 150)
    with pytest.raises(InvalidInput, match="at most 150 bytes"):
        await written(three)
    with pytest.raises(InvalidInput, match="no request"):
        await written(b"\n \n")


async def test_texts_to_embed_are_counted_not_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Written()
    counted.add(b"x", {"input": ["a", "b"]})
    counted.add(b"x", {"input": "c"})
    assert counted.texts == 3
    monkeypatch.setattr(batch_input, "MOST", 2)
    line = orjson.dumps({"custom_id": "a", "body": {"input": ["a", "b", "c"]}})
    with pytest.raises(InvalidInput, match="at most 2 texts"):
        await written(line, endpoint="/v1/embeddings")


def answered(status: Any, body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "response": {"status_code": status, "body": body}, "error": None}


@pytest.mark.parametrize(
    ("line", "kind", "retryable"),
    [
        (answered(400, {"error": {"message": "no"}}), "invalid_input", False),
        (answered(429, {"error": {"message": "no"}}), "rate_limited", True),
        (answered(500, {"error": {"message": "no"}}), "unavailable", True),
        (answered(504, None), "unavailable", True),
        (answered(None, None), "provider_error", False),
        (answered("200", {}), "provider_error", False),
        (answered(200, []), "provider_error", False),
        (answered(200, {"status": "failed", "error": {"code": "server_error"}}),
         "unavailable", True),
        (answered(200, {"status": "in_progress"}), "provider_error", False),
        (answered(200, {"status": "incomplete",
                        "incomplete_details": {"reason": "content_filter"}}),
         "content_rejected", False),
        ({"custom_id": "a", "response": None, "error": {"code": "batch_expired"}},
         "timeout", True),
        ({"custom_id": "a", "response": None, "error": {"code": "invalid_request"}},
         "invalid_input", False),
        ({"custom_id": "a"}, "provider_error", False),
        ({"custom_id": "a", "response": 7, "error": 7}, "provider_error", False),
    ],
)  # fmt: skip
def test_every_line_that_failed_has_its_error(line: Any, kind: str, retryable: bool) -> None:
    found = entry(line, "/v1/responses")
    assert (found["ok"], found["error"]["kind"]) == (False, kind)
    assert found["error"]["retryable"] is retryable


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["status_code", "body", "response", "error", "code", "choices", "data"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["responses", "chat/completions", "embeddings", "moderations"]))
def test_no_line_breaks_the_reading(said: Any, kind: str) -> None:
    line = {"custom_id": "a", **(said if isinstance(said, dict) else {"response": said})}
    assert entry(line, f"/v1/{kind}")["custom_id"] == "a"
    body = {"custom_id": "a", "response": {"status_code": 200, "body": said}}
    assert entry(body, f"/v1/{kind}")["custom_id"] == "a"
    wanted(orjson.dumps(said))


async def test_pictures_drawn_on_the_way_are_in_the_file_and_in_no_row() -> None:
    drawn = {"type": "image_generation_call", "result": "AAAA"}
    said = {"role": "message", "type": "message", "content": [{"type": "output_text", "text": "a"}]}
    body = {"status": "completed", "output": [drawn, said]}
    with tempfile.TemporaryFile() as file:
        results = Results("/v1/responses", "completed", {"a": False, "b": False}, file)
        results.read(orjson.dumps(answered(200, body)))
        results.complete()
        drawn_one, without = await results.items()
        shown = await _result({}, results, Artifact(None))
    assert drawn_one["pictures"] == ["data:image/png;base64,AAAA"]
    assert drawn_one["reply"]["text"] == "a"
    assert "pictures" not in without
    assert shown.output["items"] is None  # type: ignore[call-overload,index]


async def test_nonsense_and_repetitions_leave_one_answer_for_each_request() -> None:
    good = answered(200, {"status": "completed"})
    with tempfile.TemporaryFile() as file:
        results = Results("/v1/responses", "completed", {"b": False, "a": False}, file)
        for line in (b"{", b"7", b"null", b'{"custom_id": 3}', b'{"custom_id": "stranger"}'):
            results.read(line)
        results.read(orjson.dumps(good))
        results.read(orjson.dumps(answered(500, {})))
        results.complete()
        found = await results.items()
    assert [(each["custom_id"], each["ok"]) for each in found] == [("b", False), ("a", True)]
    assert found[0]["error"]["kind"] == "result_lost"
    assert dict(results.counts) == {"succeeded": 1, "failed": 1}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (None, "invalid_input"),
        ({"data": [7, {"line": 3, "message": "bad", "code": "x"}]}, "invalid_input"),
        ({"data": [{"message": "much", "code": "token_limit_exceeded"}]}, "rate_limited"),
        ({"data": [{"message": "pay", "code": "billing_hard_limit_reached"}]}, "quota_exceeded"),
    ],
)
def test_a_batch_that_was_not_begun_says_why(said: Any, kind: str) -> None:
    assert invalid(said).kind == kind


def test_how_far_a_batch_is() -> None:
    counts = {"total": 8, "completed": 1, "failed": 1}
    assert progress({"status": "in_progress", "request_counts": counts}) == (
        0.25,
        "in_progress: 2 of 8",
    )
    assert progress({"status": "validating"}) == (None, "validating")
    assert progress({"request_counts": {"total": 1, "completed": 9}})[0] == 1.0
