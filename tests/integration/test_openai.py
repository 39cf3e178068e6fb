"""OpenAI's tasks, whole jobs: the real SDK, its simulator, webhooks over loopback HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from agentflow_openai.provider import ABOUT_WORK
from agentflow_openai.simulator.work import Script, Work
from openai.types.webhooks import UnwrapWebhookEvent
from support.fakes import reasons, rows
from support.openai import HELLO, KEY, World, world
from support.patience import PATIENCE

from agentflow import ModelReply, Policy
from agentflow.store import queries

AnyWebhook = get_args(UnwrapWebhookEvent)[0]
"""The union of all events that the SDK knows."""
SETTLED = "SELECT status, type FROM agentflow_inbox WHERE status <> 'received'"


@pytest.fixture
async def openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world(tmp_path, monkeypatch) as one:
        yield one


def background(**script: Any) -> dict[str, Any]:
    return {**HELLO, "background": True, "metadata": {"simulate": json.dumps(script)}}


async def test_a_response_is_a_reply_with_text_and_usage(openai: World) -> None:
    job = await openai.ends("openai.respond", HELLO)
    assert job["status"] == "succeeded"
    assert job["result"]["text"] == "You said: hello"
    assert job["result"]["usage"]["input_tokens"] == 12
    assert ModelReply.model_validate(job["result"]["output"]).finish == "stop"


async def test_the_end_in_the_background_comes_by_webhook_and_is_fetched(openai: World) -> None:
    job = await openai.ends("openai.respond", background())
    assert job["status"] == "succeeded"
    assert job["external_id"].startswith("resp_")
    assert openai.sim.stats.counts["fetches"] == 1, "polling would come half a minute later"
    (name,) = openai.sim.stats.created
    assert name == f"{job['id']}:1", "OpenAI keeps whose work it is"


async def test_a_webhook_before_the_answer_is_parked_and_found(openai: World) -> None:
    openai.sim.faults.update(webhook_before_response=1)
    job = await openai.ends("openai.respond", background())
    assert (job["status"], job["attempt"]) == ("succeeded", 1)


async def test_webhooks_that_come_twice_or_forged_change_nothing(openai: World) -> None:
    openai.sim.faults.update(duplicate=True, wrong_signature=2)
    jobs = await asyncio.gather(*(openai.ends("openai.respond", background()) for _ in range(8)))
    assert {j["status"] for j in jobs} == {"succeeded"}
    assert max(openai.sim.stats.created.values()) == 1


async def test_webhooks_of_every_type_are_stored_and_those_not_about_work_ignored(
    openai: World,
) -> None:
    types = {get_args(each.model_fields["type"].annotation)[0] for each in get_args(AnyWebhook)}
    assert types > ABOUT_WORK
    for type in (*sorted(types), "future.event", "x" * 3000):
        openai.sim.announce(type, "thing_1")
    async with asyncio.timeout(PATIENCE):
        while len(found := await rows(SETTLED)) < len(types) + 2:
            await asyncio.sleep(0.05)
    for row in found:
        asked = row["type"] in ABOUT_WORK
        assert row["status"] == ("parked" if asked else "ignored"), row["type"]
    assert {row["type"] for row in found} == {*types, "future.event", "x" * 128}


@pytest.mark.parametrize("id", ["r" * 300, "r\0x", "", 7, None])
async def test_an_event_that_names_no_object_of_openai_fails_nothing(
    openai: World, id: Any
) -> None:
    openai.sim.announce("response.completed", id)
    async with asyncio.timeout(PATIENCE):
        while not (found := await rows(SETTLED)):
            await asyncio.sleep(0.05)
    assert found[0]["status"] in ("ignored", "parked")


async def test_without_webhooks_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch, webhooks=False) as openai:
        job = await openai.ends("openai.respond", background())
        assert (job["status"], job["reason"]) == ("succeeded", "succeeded")


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        ({"outcome": "failed", "code": "invalid_prompt"}, "failed", "invalid_input"),
        ({"outcome": "failed", "code": "bio_policy"}, "failed", "content_rejected"),
        ({"outcome": "incomplete", "reason": "content_filter"}, "failed", "content_rejected"),
        ({"outcome": "incomplete"}, "succeeded", None),
        ({"outcome": "cancelled"}, "canceled", None),
    ],
)
async def test_how_responses_end(
    openai: World, script: dict[str, Any], status: str, kind: str | None
) -> None:
    job = await openai.ends("openai.respond", background(**script))
    assert job["status"] == status
    assert (job["error"] or {}).get("kind") == kind


async def test_a_response_that_openai_dropped_is_lost(openai: World) -> None:
    job = await openai.app.submit("openai.respond", background(outcome="never"))
    async with asyncio.timeout(PATIENCE):
        while (await job.status())["status"] != "waiting":
            await asyncio.sleep(0.01)
    work = next(iter(openai.sim.works.values()))
    openai.sim.forget()
    openai.sim._end(work, "completed")
    assert (await openai.end_of(job.id))["error"]["kind"] == "result_lost"


@pytest.mark.parametrize("fault", ["reset", "error_after"])
async def test_background_work_whose_answer_was_lost_is_found_by_its_metadata(
    openai: World, fault: str
) -> None:
    theirs = Work(HELLO, Script())  # made by somebody else with the same project
    theirs.end("completed")
    openai.sim.works[theirs.id] = theirs
    openai.sim.announce("response.completed", theirs.id)
    openai.sim.announce("batch.completed", "batch_somebody_else_s")
    openai.sim.faults.update({fault: 1})
    submitted = await openai.app.submit("openai.respond", background(seconds=0.3))
    async with asyncio.timeout(PATIENCE):
        while len([w for w in openai.sim.works.values() if w.ended.is_set()]) < 2:
            await asyncio.sleep(0.01)
    openai.sim.announce("response.completed", "resp_gone")  # the newest, looked at first
    job = await openai.end_of(submitted.id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert openai.sim.stats.created == {f"{job['id']}:1": 1}, "it was paid for once"
    assert job["external_id"] != theirs.id


async def test_work_of_another_attempt_is_not_taken_for_that_of_this_one(openai: World) -> None:
    """It is somebody's already, or will be; to take it would bill one call for two."""
    openai.sim.faults.update(reset=1)
    submitted = await openai.app.submit("openai.respond", background(seconds=0.3))
    async with asyncio.timeout(PATIENCE):
        while not openai.sim.works:
            await asyncio.sleep(0.01)
    (work,) = openai.sim.works.values()
    cast("dict[str, Any]", work.asked)["metadata"]["agentflow_attempt"] = "7"
    job = await openai.end_of(submitted.id)
    assert (job["error"]["kind"], job["external_id"]) == ("outcome_unknown", None)


async def test_pictures_drawn_in_the_background_are_files_not_rows(openai: World) -> None:
    asked = {**background(images=2), "hosted_tools": [{"type": "image_generation"}]}
    job = await openai.ends("openai.respond", asked)
    files = job["result"]["artifacts"]
    assert [(f["status"], f["media_type"]) for f in files] == [("stored", "image/png")] * 2
    assert job["result"]["text"] == "You said: hello"
    assert "iVBOR" not in json.dumps(
        [job, await queries.history("default", job["id"])], default=str
    )
    (work,) = openai.sim.works.values()
    assert work.asked["tools"] == [{"type": "image_generation"}]


async def test_an_image_cannot_be_streamed_into_nothing(openai: World) -> None:
    job = await openai.ends("openai.image", {"prompt": "a hen", "options": {"stream": True}})
    assert job["error"]["kind"] == "invalid_input"
    assert openai.sim.stats.counts["/v1/images/generations"] == 0


async def test_a_cancel_reaches_openai(openai: World) -> None:
    job = await openai.app.submit("openai.respond", background(outcome="never"))
    async with asyncio.timeout(PATIENCE):
        while (await job.status())["status"] != "waiting":
            await asyncio.sleep(0.01)
    await job.cancel()
    assert (await openai.end_of(job.id))["status"] == "canceled"
    assert next(iter(openai.sim.works.values())).status == "cancelled"


async def test_a_rate_limit_is_waited_out(openai: World) -> None:
    openai.sim.faults.update(rate_limit=1, rate_limit_seconds=0.2)
    job = await openai.ends("openai.chat", HELLO)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert ("failed", "applied", "retry:rate_limited") in await reasons(job["id"])


@pytest.mark.parametrize("fault", ["reset", "error_after"])
async def test_a_call_that_may_have_been_paid_for_is_not_repeated(
    openai: World, fault: str
) -> None:
    openai.sim.faults.update({fault: 1})
    job = await openai.ends("openai.chat", HELLO)
    assert job["error"]["kind"] == "outcome_unknown"
    assert openai.sim.stats.counts["/v1/chat/completions"] == 1, "the SDK's own retries are off"


async def test_a_chat_answers_with_json_and_with_tools(openai: World) -> None:
    job = await openai.ends("openai.chat", {**HELLO, "output_schema": {"type": "object"}})
    assert job["result"]["output"]["output"] == {"said": "hello"}
    tools = {"tools": [{"name": "look"}], "tool_choice": "required"}
    job = await openai.ends("openai.chat", {**HELLO, **tools})
    reply = ModelReply.model_validate(job["result"]["output"])
    assert (reply.finish, reply.tool_calls[0].name) == ("tool_calls", "look")


async def test_what_openai_rejects_says_why(openai: World) -> None:
    asked = {**HELLO, "messages": [{"role": "user", "content": "reject"}]}
    job = await openai.ends("openai.chat", asked)
    assert job["error"]["kind"] == "content_rejected"


async def test_embeddings_come_in_the_order_of_the_texts(openai: World) -> None:
    job = await openai.ends("openai.embed", {"model": "e", "input": ["a", "bbb"]})
    assert job["result"]["output"]["embeddings"] == [[1.0, 0.5], [3.0, 0.5]]


async def test_pictures_and_sound_are_files_not_rows(openai: World) -> None:
    drawn = await openai.ends("openai.image", {"prompt": "a hen", "n": 2})
    files = drawn["result"]["artifacts"]
    assert [f["status"] for f in files] == ["stored", "stored"]
    assert [f["media_type"] for f in files] == ["image/png", "image/png"]
    assert "base64" not in json.dumps(drawn, default=str)

    spoken = await openai.ends("openai.speech", {"input": "good morning"})
    (sound,) = spoken["result"]["artifacts"]
    written = await openai.ends("openai.transcribe", {"artifact": sound["id"]})
    assert written["result"]["text"] == "ID3good morning"


async def test_a_picture_of_ours_is_shown_to_the_model(openai: World) -> None:
    drawn = await openai.ends("openai.image", {"prompt": "a hen"})
    content = [
        {"type": "text", "text": "what is it?"},
        {"type": "image", "url": drawn["result"]["artifacts"][0]["id"]},
    ]
    asked = {"model": "gpt-x", "messages": [{"role": "user", "content": content}]}
    job = await openai.ends("openai.respond", asked)
    assert job["status"] == "succeeded"
    (work,) = openai.sim.works.values()
    assert work.asked["input"][0]["content"][1]["image_url"].startswith("data:image/png;base64,")


async def test_the_key_is_nowhere_in_what_is_shown(
    openai: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    openai.sim.key = "sk-another"
    job = await openai.ends("openai.chat", HELLO)
    assert job["error"]["kind"] == "authentication"
    shown = json.dumps([job, await queries.history("default", job["id"])], default=str)
    assert KEY not in shown + "".join(capfd.readouterr())


def test_a_model_may_think_for_minutes() -> None:
    from agentflow_openai import provider

    assert provider.tasks["openai.respond"].policy.timeout >= 600 > Policy().timeout
