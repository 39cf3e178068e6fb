"""Mails, whole jobs: real HTTP to the simulator, signed batches of events back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from agentflow_sendgrid.simulator import SendGridSimulator, env, simulator
from support.declared import HASTY
from support.fakes import reasons, rows
from support.patience import PATIENCE
from support.servers import free_port
from support.whole import Whole, whole

from agentflow import AgentFlow
from agentflow.store import queries

KEY = "SG.a-very-secret-key"
MAIL = {"to": "Ada@example.com", "sender": "shop@example.com", "subject": "Hello", "text": "Hi"}
NEVER = {"simulate": '{"ends": "never"}'}


@dataclass
class World(Whole):
    sim: SendGridSimulator

    async def sent(self, script: dict[str, Any] | None = None, **changes: Any) -> Any:
        mail: dict[str, Any] = {**MAIL, **changes}
        mail["custom_args"] = {"simulate": json.dumps(script or {})}
        return await self.ends("sendgrid.send", mail)


@asynccontextmanager
async def world(
    data: Path, monkeypatch: pytest.MonkeyPatch, *, webhooks: bool = True
) -> AsyncIterator[World]:
    port = free_port()
    app = AgentFlow(policies={"sendgrid.send": HASTY})
    async with simulator(KEY).serve() as sim:
        for name, value in env(sim).items():
            monkeypatch.setenv(name, value)
        if webhooks:
            sim.webhook_url = f"http://127.0.0.1:{port}/webhooks/sendgrid"
        else:
            monkeypatch.delenv("SENDGRID_WEBHOOK_PUBLIC_KEY")
        async with whole(app, data, port) as here:
            yield World(app, here.url, sim)


@pytest.fixture
async def mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world(tmp_path, monkeypatch) as one:
        yield one


async def test_a_mail_has_succeeded_when_its_receiver_has_it(mail: World) -> None:
    job = await mail.sent({"deferred": 2})
    assert job["status"] == "succeeded"
    assert job["result"]["output"]["response"] == "250 OK"
    assert ("progressed", "applied", "progressed") in await reasons(job["id"])


@pytest.mark.parametrize("end", ["bounce", "dropped"])
async def test_a_mail_that_is_not_delivered_has_failed(mail: World, end: str) -> None:
    job = await mail.sent({"ends": end})
    assert (job["status"], job["error"]["kind"]) == ("failed", "provider_error")
    assert "550 no such mailbox" in job["error"]["message"]


async def test_what_the_reader_does_later_is_kept_in_the_history(mail: World) -> None:
    job = await mail.sent({"later": ["open", "click"]})
    async with asyncio.timeout(PATIENCE):
        while [r for e, _, r in await reasons(job["id"]) if r == "final"] != ["final"] * 2:
            await asyncio.sleep(0.01)


async def test_an_event_that_comes_in_two_batches_is_applied_once(mail: World) -> None:
    job = await mail.sent({"twice": True, "deferred": 1})
    async with asyncio.timeout(PATIENCE):
        while len(await rows("SELECT id FROM agentflow_inbox")) < 4:
            await asyncio.sleep(0.01)
    await mail.quiet()
    events = [event for event, _, _ in await reasons(job["id"])]
    assert events.count("succeeded") == 1
    assert events.count("progressed") == 2


async def test_elements_that_make_no_sense_do_not_stop_the_others(mail: World) -> None:
    job = await mail.sent({"junk": True, "broken": True})
    assert job["status"] == "succeeded"
    await mail.quiet()
    assert await rows("SELECT id FROM agentflow_inbox WHERE status = 'failed'") == []


async def test_a_batch_of_thousands_is_read_to_its_last_element(mail: World) -> None:
    await mail.sent()
    asked = mail.sim.mails[0]
    noise = [e for _ in range(3000) for e in mail.sim._events(asked, "open", "x")]
    job = await mail.app.submit("sendgrid.send", {**MAIL, "custom_args": NEVER})
    async with asyncio.timeout(PATIENCE):
        while (await job.status())["status"] != "waiting":
            await asyncio.sleep(0.01)
    last = mail.sim._events(mail.sim.mails[1], "delivered", "y")
    strangers = [{"event": "delivered", "email": "x@y.z", "sg_event_id": "s"}] * 500
    body = orjson.dumps([*noise, *strangers, *last]) + b"\r\n"
    assert mail.sim.webhook_url is not None
    mail.sim.outbox(mail.sim.webhook_url, mail.sim.hit).post(body, last=True)
    async with asyncio.timeout(30):
        while (await job.status())["status"] != "succeeded":
            await asyncio.sleep(0.05)


async def test_a_mail_that_sendgrid_gave_no_id_is_followed_all_the_same(mail: World) -> None:
    mail.sim.nameless = True
    job = await mail.sent()
    assert job["status"] == "succeeded"
    token = mail.sim.mails[0]["custom_args"]["agentflow_token"]
    assert token not in json.dumps([job, await queries.history("default", job["id"])], default=str)


async def test_copies_go_along_and_decide_nothing(mail: World) -> None:
    job = await mail.sent(cc=["copy@example.com"], bcc=["blind@example.com"])
    assert job["status"] == "succeeded"


async def test_events_that_come_before_the_answer_find_their_mail(mail: World) -> None:
    mail.sim.faults.update(webhook_before_response=1)
    job = await mail.sent()
    assert (job["status"], job["attempt"]) == ("succeeded", 1)


@pytest.mark.parametrize("fault", ["reset", "error_after"])
async def test_a_mail_whose_answer_was_lost_is_found_by_its_events(mail: World, fault: str) -> None:
    mail.sim.faults.update({fault: 1})
    job = await mail.sent({"seconds": 0.3})
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert list(mail.sim.stats.created.values()) == [1], "it went out once"


async def test_a_mail_that_nobody_speaks_of_is_unknown_and_not_sent_again(mail: World) -> None:
    mail.sim.faults.update(reset=1, drop=True)
    job = await mail.sent()
    assert job["error"]["kind"] == "outcome_unknown"
    assert list(mail.sim.stats.created.values()) == [1]


async def test_batches_that_are_forged_doubled_or_late_change_nothing(mail: World) -> None:
    mail.sim.faults.update(duplicate=True, reorder=0.5, wrong_signature=3, delay=0.3)
    mail.sim.faults.update(delay_seconds=0.2)
    jobs = await asyncio.gather(*(mail.sent({"deferred": 1}) for _ in range(8)))
    assert {j["status"] for j in jobs} == {"succeeded"}
    assert set(mail.sim.stats.created.values()) == {1}


async def test_a_rate_limit_is_waited_out(mail: World) -> None:
    mail.sim.faults.update(rate_limit=1, rate_limit_seconds=0.2)
    job = await mail.sent()
    assert (job["status"], job["attempt"]) == ("succeeded", 2)


async def test_without_a_webhook_a_mail_has_succeeded_when_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch, webhooks=False) as mail:
        job = await mail.sent()
        assert job["status"] == "succeeded"
        assert job["result"]["output"]["event"] == "accepted"


async def test_who_does_not_wait_for_the_delivery_says_so(mail: World) -> None:
    job = await mail.sent({"ends": "never"}, wait_for="acceptance")
    assert job["result"]["output"]["event"] == "accepted"


async def test_the_key_and_the_token_are_nowhere_in_what_is_shown(
    mail: World, capfd: pytest.CaptureFixture[str]
) -> None:
    mail.sim.key = "another"
    job = await mail.sent()
    assert job["error"]["kind"] == "authentication"
    shown = json.dumps([job, await queries.history("default", job["id"])], default=str)
    assert KEY not in shown + "".join(capfd.readouterr())
