"""Services declared by settings alone: their webhooks, their polls, and no Python for either."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agentflow_http.simulator import QueueSimulator, SpeechSimulator
from support.declared import declared
from support.fakes import rows
from support.patience import PATIENCE
from support.servers import free_port
from support.whole import Whole

import agentflow
from agentflow.store import queries

KEY = "a-very-secret-key"
SOUND = {"audio_url": "https://files.example.com/a.mp3"}
TASKS = ("speech.transcribe", "queue.draw")
QUICK = (0.1, 0.2, 0.4, 0.8)


class World:
    def __init__(self, here: Whole, speech: SpeechSimulator, queue: QueueSimulator) -> None:
        self.here, self.speech, self.queue = here, speech, queue

    async def transcribed(self, **script: Any) -> dict[str, Any]:
        return await self.here.ends("speech.transcribe", {**SOUND, "script": script})

    async def drawn(self, **script: Any) -> dict[str, Any]:
        return await self.here.ends("queue.draw", {"prompt": "a hen", "script": script})

    async def made(self, task: str, **script: Any) -> dict[str, Any]:
        return await (self.drawn if task == "queue.draw" else self.transcribed)(**script)

    def sim(self, task: str) -> Any:
        return self.queue if task == "queue.draw" else self.speech


@asynccontextmanager
async def _world(
    data: Path, monkeypatch: pytest.MonkeyPatch, *, webhooks: bool, **policy: Any
) -> AsyncIterator[World]:
    speech, queue = SpeechSimulator(key=KEY, retries=QUICK), QueueSimulator(key=KEY, retries=QUICK)
    async with speech.serve(), queue.serve():
        there = declared(data, monkeypatch, speech, queue, webhooks=webhooks, hasty=TASKS, **policy)
        async with there as here:
            yield World(here, speech, queue)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with _world(tmp_path, monkeypatch, webhooks=True) as one:
        yield one


@pytest.fixture
async def polling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with _world(tmp_path, monkeypatch, webhooks=False) as one:
        yield one


tasks = pytest.mark.parametrize("task", TASKS)


def drawing(job: dict[str, Any]) -> None:
    (file,) = job["result"]["artifacts"]
    assert (file["status"], file["media_type"]) == ("stored", "image/png")
    assert job["result"]["output"]["seed"] == 7


async def test_a_thin_webhook_leads_to_a_look(world: World) -> None:
    job = await world.transcribed()
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert job["result"]["output"]["text"] == "well, hello"
    (webhook,) = await rows("SELECT status FROM agentflow_inbox WHERE kind = 'webhook'")
    assert webhook["status"] == "applied"
    assert world.speech.stats.counts["gets"] == 1


async def test_a_webhook_with_its_result_needs_no_look(world: World) -> None:
    job = await world.drawn()
    assert job["status"] == "succeeded"
    drawing(job)
    assert world.queue.stats.counts["looks"] == 0
    assert world.queue.stats.counts["jwks"] == 1


async def test_a_success_whose_webhook_has_no_payload_is_fetched(world: World) -> None:
    job = await world.drawn(thin=True)
    drawing(job)
    assert world.queue.stats.counts["looks"] == 1


@tasks
async def test_without_webhooks_the_end_is_the_same(polling: World, task: str) -> None:
    job = await polling.made(task)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    if task == "queue.draw":
        drawing(job)
    failed = await polling.made(task, ends="ERROR" if task == "queue.draw" else "error")
    assert (failed["status"], failed["error"]["kind"]) == ("failed", "provider_error")
    assert failed["error"]["message"] in ("The prompt was too odd.", "no speech in it")
    assert polling.sim(task).stats.counts["webhooks_tried"] == 0


async def test_a_failure_is_told_by_webhook_with_its_sentence(world: World) -> None:
    job = await world.drawn(ends="ERROR")
    assert (job["status"], job["error"]["kind"]) == ("failed", "provider_error")
    assert job["error"]["message"] == "The prompt was too odd."
    job = await world.transcribed(ends="error")
    assert job["error"]["message"] == "no speech in it"


@tasks
async def test_webhooks_that_are_early_doubled_or_forged_change_nothing(
    world: World, task: str
) -> None:
    world.sim(task).faults.update(webhook_before_response=2, duplicate=True, wrong_signature=3)
    jobs = await asyncio.gather(*(world.made(task) for _ in range(6)))
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert set(world.sim(task).stats.created.values()) == {1}
    assert world.sim(task).stats.answers["401"] >= 3


@tasks
@pytest.mark.parametrize("fault", ["reset", "error_after"])
async def test_a_create_whose_answer_was_lost_is_found_by_its_webhook(
    world: World, task: str, fault: str
) -> None:
    world.sim(task).faults.update({fault: 1})
    job = await world.made(task, seconds=0.3)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert list(world.sim(task).stats.created.values()) == [1]


@tasks
async def test_a_create_that_nobody_speaks_of_is_unknown_and_not_repeated(
    world: World, task: str
) -> None:
    world.sim(task).faults.update(reset=1, drop=True)
    job = await world.made(task)
    assert job["error"]["kind"] == "outcome_unknown"
    assert list(world.sim(task).stats.created.values()) == [1]


@tasks
async def test_what_surely_had_no_effect_is_tried_again(world: World, task: str) -> None:
    world.sim(task).faults.update(rate_limit=1, rate_limit_seconds=0.1)
    job = await world.made(task)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)


@tasks
async def test_a_cancel_reaches_the_service(world: World, task: str) -> None:
    input = {**SOUND, "prompt": "x", "script": {"ends": "never"}}
    job = await world.here.app.submit(task, input)
    async with asyncio.timeout(PATIENCE):
        while (await job.status())["status"] != "waiting":
            await asyncio.sleep(0.01)
        await job.cancel()
        while (view := await job.status())["finished_at"] is None:
            await asyncio.sleep(0.01)
    assert view["status"] == "canceled"
    kept = [*world.queue.requests.values(), *world.speech.transcripts.values()]
    assert [each["status"] for each in kept] in (["CANCELED"], ["deleted"])


class Account(SpeechSimulator):
    """Its webhooks come to one URL, and bring no token."""

    def service(self) -> dict[str, Any]:
        known = super().service()
        body = known["webhook"]["send"]["body"] | {"webhook_url": self.told}
        known["webhook"]["send"] = {"body": body}
        return known

    told = ""


async def test_webhooks_of_an_account_find_their_work_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, port = Account(key=KEY, retries=QUICK), free_port()
    sim.told = f"http://127.0.0.1:{port}/webhooks/speech"
    async with (
        sim.serve(),
        declared(tmp_path, monkeypatch, sim, hasty=TASKS[:1], port=port) as here,
    ):
        assert here.app.runtime.catalogue.is_account_wide("speech")
        sim.faults.update(webhook_before_response=1)
        for _ in range(2):
            job = await here.ends("speech.transcribe", SOUND)
            assert (job["status"], job["attempt"]) == ("succeeded", 1)
        assert sim.stats.counts["gets"] == 2


PAGE = Path(agentflow.__file__).parents[1] / "docs" / "http.md"


def declaration(name: str) -> dict[str, Any]:
    """A service as the page declares it."""
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    (found,) = [given[name] for block in blocks if name in (given := tomllib.loads(block))]
    return dict(found)


@pytest.mark.parametrize("webhooks", [True, False])
async def test_what_the_page_declares_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhooks: bool
) -> None:
    monkeypatch.setenv("ASSEMBLYAI_API_KEY", KEY)
    monkeypatch.setenv("ASSEMBLYAI_WEBHOOK_SECRET", "a-secret-of-my-choice")
    monkeypatch.setenv("FAL_KEY", KEY)
    speech, queue = SpeechSimulator(key=KEY, retries=QUICK), QueueSimulator(key=KEY, retries=QUICK)
    async with speech.serve(), queue.serve():
        mine = {"assemblyai": declaration("assemblyai"), "fal": declaration("fal")}
        mine["assemblyai"] |= {"base_url": speech.url, "private": True}
        mine["fal"] |= {"base_url": queue.url, "private": True}
        mine["fal"]["webhook"]["scheme"]["url"] = f"{queue.url}/.well-known/jwks.json"
        text = json.dumps(mine).replace("fal-ai/flux/dev", "acme/draw")
        monkeypatch.setenv("AGENTFLOW_HTTP_SERVICES", text.replace("fal-ai/flux", "acme/draw"))
        async with declared(tmp_path, monkeypatch, webhooks=webhooks) as here:
            for script in ({}, {"thin": True}):
                drawn = await here.ends("fal.flux", {"prompt": "a hen", "script": script})
                drawing(drawn)
            spoken = await here.ends("assemblyai.transcribe", SOUND)
            assert spoken["result"]["output"]["text"] == "well, hello"
            failed = await here.ends("assemblyai.transcribe", SOUND | {"script": {"ends": "error"}})
            assert failed["error"]["message"] == "no speech in it"
        sent = speech.stats.answers["202"] + queue.stats.answers["202"]
        assert sent == (4 if webhooks else 0)


async def test_a_key_that_changed_is_fetched_and_the_delivery_comes_home(world: World) -> None:
    await world.drawn()
    world.queue.rotate()
    verifier: Any = world.here.app.runtime.catalogue.providers["queue"].verifier
    verifier._asked_at = None  # as a minute later
    assert (await world.drawn())["status"] == "succeeded"
    assert world.queue.stats.counts["jwks"] == 2


async def test_while_the_keys_are_out_of_reach_webhooks_are_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _world(tmp_path, monkeypatch, webhooks=True, poll_after_webhook=1.0)
    async with there as world:
        world.queue.keys_answer = 500
        job = await world.drawn()
        assert job["status"] == "succeeded", "found by a look"
        assert world.queue.stats.answers["503"] >= 1
        assert "401" not in world.queue.stats.answers
        assert await rows("SELECT id FROM agentflow_inbox WHERE kind = 'webhook'") == []


async def test_no_secret_is_in_what_is_kept_or_said(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [await world.made(task) for task in TASKS]
    world.speech.key = world.queue.key = "another"
    jobs += [await world.made(task) for task in TASKS]
    assert [job["status"] for job in jobs] == ["succeeded"] * 2 + ["failed"] * 2
    await world.here.quiet()
    kept = [await queries.history("default", job["id"]) for job in jobs]
    kept += [
        await rows(f"SELECT * FROM {table}") for table in ("agentflow_jobs", "agentflow_inbox")
    ]
    shown = json.dumps([jobs, kept], default=str) + "".join(capfd.readouterr())
    assert KEY not in shown
    assert world.speech.proof not in shown


@tasks
async def test_a_failure_is_the_same_by_webhook_and_by_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    word, errors = "ERROR" if task == "queue.draw" else "error", []
    for webhooks in (True, False):
        async with _world(tmp_path / str(webhooks), monkeypatch, webhooks=webhooks) as one:
            errors.append((await one.made(task, ends=word))["error"])
    assert errors[0] == errors[1]
