"""Answers of OpenAI's models piece by piece: the real SDK, its simulator, server-sent events."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from agentflow_openai.simulator import OpenAISimulator, env, simulator
from support.patience import PATIENCE
from support.poet import Heard, hear, listening
from support.servers import free_port
from support.serving import http_server

from agentflow import AgentFlow, Client, ModelReply, Settings
from agentflow.app import standalone
from agentflow.webhooks.signatures import new_secret

DATABASES = ("sqlite",)

TEXT = (1, "text")
WORDS = " ".join(f"word{n}" for n in range(60))


def asking(**script: Any) -> dict[str, Any]:
    said = {"model": "gpt-x", "messages": [{"role": "user", "content": WORDS}], "stream": True}
    return {**said, "metadata": {"simulate": json.dumps(script)}} if script else said


@dataclass
class World:
    http: httpx.AsyncClient
    sim: OpenAISimulator
    url: str

    async def submit(self, task: str, input: Any) -> str:
        answer = await self.http.post("/v1/jobs", json={"task": task, "input": input})
        assert answer.status_code == 201, answer.text
        id: str = answer.json()["id"]
        return id

    async def ends(self, task: str, input: Any) -> tuple[Any, Heard]:
        """The job at its end, and what was heard of it meanwhile."""
        id = await self.submit(task, input)
        heard = await hear(self.http, id)
        return (await self.http.get(f"/v1/jobs/{id}")).json(), heard


@pytest.fixture
async def openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world(tmp_path, monkeypatch) as made:
        yield made


@asynccontextmanager
async def world(data: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    port = free_port()
    async with simulator(new_secret(), "sk-test").serve() as sim:
        for name, value in env(sim).items():
            monkeypatch.setenv(name, value)
        hasty = {"backoff": 0.05, "unknown_checks": 1}
        app = AgentFlow(policies=dict.fromkeys(("openai.respond", "openai.chat"), hasty))
        app._settings = Settings(data_dir=data, port=port, grace=0.2)
        url = f"http://127.0.0.1:{port}"
        async with (
            http_server(standalone(app), port),
            httpx.AsyncClient(base_url=url, timeout=30) as http,
        ):
            yield World(http, sim, url)


@pytest.mark.parametrize("task", ["openai.respond", "openai.chat"])
async def test_the_text_comes_live_and_the_reply_is_that_of_the_end(
    openai: World, task: str
) -> None:
    job, heard = await openai.ends(task, asking())
    assert job["status"] == "succeeded"
    assert heard.text == {TEXT: f"You said: {WORDS}"}
    assert (job["result"]["text"], heard.gaps) == (heard.text[TEXT], [])
    reply = ModelReply.model_validate(job["result"]["output"])
    assert (reply.finish, reply.text) == ("stop", heard.text[TEXT])
    assert job["result"]["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("task", ["openai.respond", "openai.chat"])
async def test_a_streamed_reply_is_the_same_as_one_at_once(openai: World, task: str) -> None:
    streamed, _ = await openai.ends(task, asking())
    whole, heard = await openai.ends(task, {**asking(), "stream": False})
    assert streamed["result"] == whole["result"]
    assert heard.text == {}


async def test_pieces_are_heard_while_the_model_still_writes(openai: World) -> None:
    job = await openai.submit("openai.respond", asking(seconds=2.0))
    async with asyncio.timeout(PATIENCE), listening(openai.http, job) as messages:
        async for heard in messages:
            if heard.text[TEXT]:
                break
        said = (await openai.http.get(f"/v1/jobs/{job}")).json()
        assert said["status"] == "running"
        assert len(heard.text[TEXT]) < len(WORDS) / 2
        async for _ in messages:
            pass
    assert heard.order.count("delta") > 10


@pytest.mark.parametrize("task", ["openai.respond", "openai.chat"])
async def test_a_stream_that_is_cut_is_an_unknown_outcome_and_not_paid_twice(
    openai: World, task: str
) -> None:
    openai.sim.faults.update(cut_body=1)
    job, heard = await openai.ends(task, asking())
    assert (job["status"], job["error"]["kind"]) == ("failed", "outcome_unknown")
    assert 0 < len(heard.text[TEXT]) < len(f"You said: {WORDS}")
    assert heard.gaps == [], "what was said was heard"
    assert job["attempt"] == 1
    assert openai.sim.stats.faults["cut_body"] == 1
    made = openai.sim.stats.created.total() + openai.sim.stats.counts["/v1/chat/completions"]
    assert made == 1


async def test_a_stream_that_ends_before_the_response_does_is_unknown(openai: World) -> None:
    job, heard = await openai.ends("openai.respond", asking(outcome="never"))
    assert job["error"]["kind"] == "outcome_unknown"
    assert heard.text[TEXT] == f"You said: {WORDS}", "all words, and no end"


@pytest.mark.parametrize("task", ["openai.respond", "openai.chat"])
async def test_a_slow_stream_is_waited_for(openai: World, task: str) -> None:
    openai.sim.faults.update(slow_body=1, slow_seconds=0.5)
    job, heard = await openai.ends(task, asking())
    assert job["status"] == "succeeded"
    assert heard.text[TEXT] == job["result"]["text"]


async def test_a_failure_within_the_stream_says_its_reason(openai: World) -> None:
    job, _ = await openai.ends("openai.respond", asking(outcome="failed", code="bio_policy"))
    assert job["error"]["kind"] == "content_rejected"
    openai.sim.faults.update(fail=1)
    job, heard = await openai.ends("openai.chat", asking())
    assert job["attempt"] == 2, "the service says itself that it failed; that is no unknown outcome"
    assert (job["status"], job["result"]["text"]) == ("succeeded", heard.text[2, "text"])
    assert 0 < len(heard.text[TEXT]) < len(heard.text[2, "text"])


async def test_an_answer_cut_short_by_its_limit_is_one(openai: World) -> None:
    job, _ = await openai.ends("openai.respond", asking(outcome="incomplete"))
    assert job["result"]["output"]["finish"] == "length"


async def test_tools_and_json_are_put_together_from_their_pieces(openai: World) -> None:
    tools = {"tools": [{"name": "look"}], "tool_choice": "required"}
    job, _ = await openai.ends("openai.chat", {**asking(), **tools})
    (call,) = ModelReply.model_validate(job["result"]["output"]).tool_calls
    assert (call.name, call.arguments) == ("look", {"a": 1})
    shaped = {**asking(), "output_schema": {"type": "object"}}
    job, _ = await openai.ends("openai.chat", shaped)
    assert job["result"]["output"]["output"] == {"said": WORDS}
    job, _ = await openai.ends("openai.respond", asking(tool="find"))
    (call,) = ModelReply.model_validate(job["result"]["output"]).tool_calls
    assert (call.name, call.arguments) == ("find", {"query": WORDS})


async def test_nobody_listens_in_the_background(openai: World) -> None:
    asked = {"task": "openai.respond", "input": {**asking(), "background": True}}
    answer = await openai.http.post("/v1/jobs", json=asked)
    assert answer.status_code == 422
    assert openai.sim.stats.created.total() == 0


async def test_the_client_gives_the_text_as_it_comes(openai: World) -> None:
    id = await openai.submit("openai.respond", asking(seconds=0.3))

    def read() -> tuple[list[str], Any]:
        with Client(openai.url) as client:
            job = client.job(id)
            return [str(delta) for delta in job.stream()], job.result(timeout=10)

    pieces, result = await asyncio.to_thread(read)
    assert len(pieces) > 2
    assert "".join(pieces) == result.text == f"You said: {WORDS}"


async def test_the_command_line_writes_the_text_as_it_comes(openai: World) -> None:
    env = {**os.environ, "AGENTFLOW_URL": openai.url}
    asked = json.dumps(asking(seconds=0.5))
    program = [sys.executable, "-m", "agentflow", "submit", "openai.respond", asked, "--stream"]

    async def ran(*more: str) -> tuple[int | None, str, str]:
        child = await asyncio.create_subprocess_exec(
            *program, *more, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await child.communicate()
        return child.returncode, out.decode(), err.decode()

    code, out, err = await ran()
    assert (code, out) == (0, f"You said: {WORDS}\n"), err
    code, out, err = await ran("--json")
    assert json.loads(out)["status"] == "succeeded"
    assert f"You said: {WORDS}" in err
    openai.sim.faults.update(cut_body=1)
    code, out, err = await ran()
    assert code == 1
    assert out.startswith("You said: word0")
    assert "outcome_unknown" in out
