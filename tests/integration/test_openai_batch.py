"""`openai.batch`, whole jobs: a file up, webhooks or polls, files down, a line for each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.openai import HELLO, KEY, World, world
from support.patience import PATIENCE

from agentflow import ModelReply
from agentflow.store import queries


@pytest.fixture
async def openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world(tmp_path, monkeypatch) as one:
        yield one


def items(*words: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"custom_id": f"n{n}", "request": {**HELLO, "messages": [_said(each)], **more}}
        for n, each in enumerate(words)
    ]


def _said(words: str) -> dict[str, str]:
    return {"role": "user", "content": words}


def asked(*words: str, **script: Any) -> dict[str, Any]:
    return {"items": items(*words), "metadata": {"simulate": json.dumps(script)}}


async def lines(openai: World, job: Any) -> list[Any]:
    """The lines of the job's file of results."""
    return [orjson.loads(line) for line in (await openai.content(job)).splitlines()]


async def waiting(openai: World, input: Any) -> Any:
    job = await openai.app.submit("openai.batch", input)
    async with asyncio.timeout(PATIENCE):
        while (await job.status())["status"] != "waiting":
            await asyncio.sleep(0.01)
    return job


async def test_every_request_has_its_answer_in_the_order_asked(openai: World) -> None:
    job = await openai.ends("openai.batch", asked("one", "two", "three", "four"))
    assert job["status"] == "succeeded", job["error"]
    output = job["result"]["output"]
    assert output["counts"] == {"total": 4, "succeeded": 4, "failed": 0}
    assert [each["custom_id"] for each in output["items"]] == ["n0", "n1", "n2", "n3"]
    reply = ModelReply.model_validate(output["items"][2]["reply"])
    assert reply.text == "You said: three"
    assert output["items"][2]["usage"]["input_tokens"] == 12
    assert job["result"]["usage"] == {"input_tokens": 48, "output_tokens": 28}
    assert await lines(openai, job) == output["items"]


async def test_the_end_comes_by_webhook_and_the_batch_says_whose_it_is(openai: World) -> None:
    job = await openai.ends("openai.batch", asked("one"))
    (batch,) = openai.sim.batches.all.values()
    assert job["external_id"] == batch.id
    assert openai.sim.stats.counts["fetches"] == 1, "polling would come half a minute later"
    assert batch.asked["metadata"]["agentflow_job"] == job["id"]


async def test_without_webhooks_a_batch_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch, webhooks=False) as openai:
        job = await openai.ends("openai.batch", asked("one", "two"))
        assert job["status"] == "succeeded"
        assert job["result"]["output"]["counts"]["succeeded"] == 2


async def test_a_webhook_before_the_answer_finds_its_batch(openai: World) -> None:
    openai.sim.faults.update(webhook_before_response=1)
    job = await openai.ends("openai.batch", asked("one"))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)


@pytest.mark.parametrize("fault", ["reset", "error_after"])
async def test_a_batch_whose_answer_was_lost_is_found_and_not_made_again(
    openai: World, fault: str
) -> None:
    openai.sim.faults.update({fault: 1})
    job = await openai.ends("openai.batch", asked("one"))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert list(openai.sim.stats.created.values()) == [1]
    assert openai.sim.stats.counts["uploads"] == 1


async def test_a_batch_that_never_came_to_be_is_unknown(openai: World) -> None:
    openai.sim.faults.update(error_before=1)
    job = await openai.ends("openai.batch", asked("one"))
    assert job["error"]["kind"] == "outcome_unknown"


async def test_an_upload_that_fails_is_done_again(openai: World) -> None:
    openai.sim.batches.failing = 1
    job = await openai.ends("openai.batch", asked("one"))
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert openai.sim.stats.counts["uploads"] == 2


async def test_requests_that_failed_say_why_beside_those_that_did_not(openai: World) -> None:
    job = await openai.ends("openai.batch", asked("one", "reject", "three"))
    assert job["status"] == "succeeded"
    assert job["result"]["output"]["counts"] == {"total": 3, "succeeded": 2, "failed": 1}
    refused = job["result"]["output"]["items"][1]
    assert (refused["custom_id"], refused["ok"], refused["reply"]) == ("n1", False, None)
    assert refused["error"]["kind"] == "content_rejected"
    assert "It violates the policy." in refused["error"]["message"]


async def test_a_batch_that_expired_keeps_what_it_came_to(openai: World) -> None:
    words = asked("one", "two", "three", "four", outcome="expired", answered=2)
    job = await openai.ends("openai.batch", words)
    assert job["status"] == "succeeded"
    output = job["result"]["output"]
    assert output["status"] == "expired"
    assert [each["ok"] for each in output["items"]] == [True, True, False, False]
    late = [each["error"] for each in output["items"][2:]]
    assert {e["kind"] for e in late} == {"timeout"}, "one line OpenAI wrote, one it forgot"
    assert all(e["retryable"] for e in late)


async def test_a_batch_that_expired_before_anything_was_done_has_failed(openai: World) -> None:
    job = await openai.ends("openai.batch", asked("one", outcome="expired", answered=0))
    assert (job["status"], job["error"]["kind"]) == ("failed", "timeout")
    assert job["attempt"] == 1, "another day would not fit in"


async def test_a_batch_that_openai_refused_says_the_line(openai: World) -> None:
    job = await openai.ends("openai.batch", asked("one", outcome="failed"))
    assert (job["status"], job["error"]["kind"]) == ("failed", "invalid_input")
    assert "line 1: Simulated failure." in job["error"]["message"]


async def test_a_cancel_reaches_the_batch(openai: World) -> None:
    job = await waiting(openai, asked("one", outcome="never"))
    await job.cancel()
    assert (await openai.end_of(job.id))["status"] == "canceled"
    (batch,) = openai.sim.batches.all.values()
    assert batch.status == "cancelled"


async def test_a_batch_that_was_cancelled_at_openai_is_canceled(openai: World) -> None:
    job = await waiting(openai, asked("one", outcome="never"))
    (batch,) = openai.sim.batches.all.values()
    openai.sim.batches._end(batch, "cancelled")
    assert (await openai.end_of(job.id))["status"] == "canceled"


async def test_a_batch_whose_files_are_gone_is_lost(openai: World) -> None:
    job = await waiting(openai, asked("one", outcome="never"))
    (batch,) = openai.sim.batches.all.values()
    batch.output = "file-gone"
    openai.sim.batches._end(batch, "completed")
    assert (await openai.end_of(job.id))["error"]["kind"] == "result_lost"


async def test_answers_are_kept_also_when_the_requests_file_is_gone(openai: World) -> None:
    job = await waiting(openai, asked("one", outcome="never"))
    (batch,) = openai.sim.batches.all.values()
    lines = [orjson.loads(openai.sim.batches.files.pop(batch.asked["input_file_id"]))]
    openai.sim.batches._work(batch, lines)
    openai.sim.batches._end(batch, "completed")
    ended = await openai.end_of(job.id)
    assert ended["result"]["output"]["items"][0]["custom_id"] == "n0"


@pytest.mark.parametrize(
    ("endpoint", "body", "reply"),
    [
        ("/v1/embeddings", {"model": "e", "input": ["a", "bb"]}, {"embeddings": [[1.0], [2.0]]}),
        ("/v1/moderations", {"input": "x"}, {"echo": {"input": "x"}}),
    ],
)
async def test_other_endpoints_take_bodies(
    openai: World, endpoint: str, body: Any, reply: Any
) -> None:
    one = {"custom_id": "a", "body": body}
    job = await openai.ends("openai.batch", {"endpoint": endpoint, "items": [one]})
    found = job["result"]["output"]["items"][0]["reply"]
    assert {name: found[name] for name in reply} == reply


async def test_a_chat_that_was_to_answer_json_has_an_output(openai: World) -> None:
    plain = {"custom_id": "raw", "body": {"model": "m", "messages": [_said("[1]")]}}
    chats = [*items("one", output_schema={"type": "object"}), plain]
    job = await openai.ends("openai.batch", {"endpoint": "/v1/chat/completions", "items": chats})
    asked_for, not_asked = job["result"]["output"]["items"]
    assert asked_for["reply"]["output"] == {"said": "one"}
    assert (not_asked["reply"]["text"], not_asked["reply"]["output"]) == ("[1]", None)


async def test_thousands_of_requests_come_from_a_file_and_go_into_one(openai: World) -> None:
    body = {"model": "m", "input": "x" * 200}
    theirs = [
        {"custom_id": f"n{n}", "method": "POST", "url": "/v1/responses", "body": body}
        for n in range(6000)
    ]
    ours = items("the last")[0] | {"custom_id": "last"}
    file = await openai.file(b"\n".join(map(orjson.dumps, [*theirs, ours])))
    job = await openai.ends("openai.batch", {"artifact": file})
    assert job["status"] == "succeeded", job["error"]
    assert job["result"]["output"]["items"] is None, "a row is no place for that much"
    assert job["result"]["output"]["counts"] == {"total": 6001, "succeeded": 6001, "failed": 0}
    assert job["result"]["usage"]["output_tokens"] == 6001 * 7
    found = await lines(openai, job)
    assert [each["custom_id"] for each in found] == [*(f"n{n}" for n in range(6000)), "last"]
    assert found[-1]["reply"]["text"] == "You said: the last"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "Line 2: "),
        (b'{"custom_id": "n0", "body": {}}', "'n0' is given twice"),
        (b'{"custom_id": "a"}', "Line 2: it: "),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "for POST /v1/responses"),
        (b"[]", "Line 2: "),
    ],
)
async def test_a_file_that_cannot_be_sent_says_the_line_and_costs_nothing(
    openai: World, line: bytes, said: str
) -> None:
    file = await openai.file(b'{"custom_id": "n0", "body": {}}\n' + line)
    job = await openai.ends("openai.batch", {"artifact": file})
    assert job["error"]["kind"] == "invalid_input"
    assert said in job["error"]["message"]
    assert openai.sim.stats.counts["uploads"] == 0


async def test_neither_key_nor_token_is_shown(openai: World) -> None:
    job = await openai.ends("openai.batch", asked("one"))
    (batch,) = openai.sim.batches.all.values()
    token = batch.asked["metadata"]["agentflow_token"]
    shown = json.dumps([job, await queries.history("default", job["id"])], default=str)
    assert KEY not in shown
    assert token not in shown
