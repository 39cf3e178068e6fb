"""`callback_url`: one signed event for each ended job, on real HTTP, however often it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from support.fakes import Fake, reasons, rows, running, tell, until
from support.money import budget, ledger, shown
from support.patience import PATIENCE
from support.servers import free_port
from support.serving import http_server

from agentflow import (
    AgentFlow,
    Artifact,
    Failed,
    InvalidInput,
    Policy,
    ProviderError,
    Result,
    SettingsError,
    Succeeded,
)
from agentflow.core.submission import CALLBACK_TASK
from agentflow.settings import load_settings
from agentflow.store import queries
from agentflow.store.queries import JobFilter
from agentflow.types import utcnow
from agentflow.webhooks.signatures import StandardWebhooksVerifier, new_secret
from agentflow.worker import callbacks

OLD, NEW = new_secret(), new_secret()


@dataclass
class Receiver:
    """Keeps what came, and answers by the list until it is used up, then 204."""

    url: str = ""
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[Response] = field(default_factory=list)

    late: Callable[[Request], Awaitable[Response]] | None = None

    async def answer(self, request: Request) -> Response:
        return await (self.late or self.take)(request)

    async def take(self, request: Request) -> Response:
        self.came.append((dict(request.headers), await request.body()))
        return self.answers.pop(0) if self.answers else Response(status_code=204)

    @property
    def events(self) -> list[Any]:
        return [orjson.loads(body) for _, body in self.came]


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    monkeypatch.setenv("AGENTFLOW_CALLBACK_SECRET", f"{OLD} {NEW}")
    monkeypatch.setenv("AGENTFLOW_CALLBACK_ALLOW", '["127.0.0.0/8"]')
    hasty = Policy(repeatable=True, max_attempts=4, backoff=0.05)
    monkeypatch.setattr(callbacks, "POLICY", hasty)
    one, port = Receiver(), free_port()
    one.url = f"http://127.0.0.1:{port}/hook?shot=7"
    hook = Route("/{path:path}", one.answer, methods=["GET", "POST"])
    async with http_server(Starlette(routes=[hook]), port):
        yield one


@asynccontextmanager
async def world(data: Path) -> AsyncIterator[AgentFlow]:
    fake = Fake(Policy(backoff=0.01))
    fake.answers = {
        1: Result(output={"a": 1}),
        2: InvalidInput("no"),
        3: Result(text="x" * 240_000),
    }
    async with running(data, fake) as app:
        yield app


async def callback_of(app: AgentFlow, job: str, status: str = "succeeded") -> dict[str, Any]:
    """The callback's own job, ended so."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await about(job)):
            await asyncio.sleep(0.01)
    return await until(app, found[0]["id"], status)


async def about(job: str) -> list[Any]:
    found, _ = await queries.list_jobs("default", JobFilter(entity=f"job:{job}"))
    return found


@pytest.mark.parametrize(("n", "status"), [(1, "succeeded"), (2, "failed")])
async def test_the_end_of_a_job_is_told_once_and_signed(
    receiver: Receiver, tmp_path: Path, n: int, status: str
) -> None:
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": n}, callback_url=receiver.url)
        view = await until(app, job.id, status)
        await callback_of(app, job.id)
        ((headers, body),) = receiver.came
        event = orjson.loads(body)
        assert event["type"] == f"job.{status}"
        assert event["data"] == orjson.loads(orjson.dumps(view))
        assert event["sequence"] == view["version"] - 1
        assert headers["webhook-id"] == event["id"]
        for key in (OLD, NEW):  # whoever holds either key can check it
            Webhook(key).verify(body.decode(), headers)
            StandardWebhooksVerifier([key]).verify(headers, body, utcnow())
        assert await about(view["id"]) != []


async def test_a_cancel_is_an_end_too(receiver: Receiver, tmp_path: Path) -> None:
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {}, delay=60, callback_url=receiver.url)
        await job.cancel()
        await callback_of(app, job.id)
        assert [e["type"] for e in receiver.events] == ["job.canceled"]


async def test_a_callback_is_its_jobs_tenants(receiver: Receiver, tmp_path: Path) -> None:
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, tenant="other", callback_url=receiver.url)
        wanted = JobFilter(entity=f"job:{job.id}")
        async with asyncio.timeout(PATIENCE):
            while not receiver.came:
                await asyncio.sleep(0.01)
        assert len((await queries.list_jobs("other", wanted))[0]) == 1
        assert await about(job.id) == []


async def test_what_is_heard_after_the_end_is_no_second_one(
    receiver: Receiver, tmp_path: Path
) -> None:
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        await callback_of(app, job.id)
        for late in (Failed(ProviderError("late"), attempt=1), Succeeded(Result(), attempt=1)):
            await tell(app, job.id, late)
        await app.runtime.writer.settled()
        assert len(await reasons(job.id)) == 5, "heard, and ignored"
        assert len(await about(job.id)) == 1


async def test_every_try_has_the_same_id_and_body(receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers = [Response(status_code=500), Response(status_code=404)]
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        told = await callback_of(app, job.id)
        assert told["attempt"] == 3
        assert len({(h["webhook-id"], body) for h, body in receiver.came}) == 1


async def test_a_callback_given_up_can_be_retried_under_its_id(
    receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answers = [Response(status_code=410)]
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        gone = await callback_of(app, job.id, "failed")
        assert gone["attempt"] == 1, "410: it wants no more"
        again = await app.submit(CALLBACK_TASK, (await input_of(gone["id"])), retry_of=gone["id"])
        await until(app, again.id, "succeeded")
        assert len({h["webhook-id"] for h, _ in receiver.came}) == 1


async def input_of(job: str) -> Any:
    return orjson.loads((await queries.get_input("default", job))["input"])


async def test_a_redirect_is_not_followed(receiver: Receiver, tmp_path: Path) -> None:
    there = {"location": receiver.url}
    receiver.answers = [Response(status_code=307, headers=there) for _ in range(4)]
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        told = await callback_of(app, job.id, "failed")
        assert told["error"]["kind"] == "unavailable"
        assert len(receiver.came) == 4, "four tries, and nothing besides"


async def test_the_answer_s_body_is_not_read(receiver: Receiver, tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 65536
            await asyncio.sleep(0.001)

    receiver.answers = [StreamingResponse(endless())]
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        told = await callback_of(app, job.id)
        assert told["result"]["output"] == {"status": 200}
    assert sent < 1000, "the connection was closed"


async def test_a_receiver_that_is_silent_is_asked_again(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "TIMEOUT", 1.0)
    take, silent = receiver.take, 1

    async def slow(request: Request) -> Response:
        nonlocal silent
        answer = await take(request)
        if silent:
            silent -= 1
            await asyncio.sleep(2)
        return answer

    receiver.late = slow
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        told = await callback_of(app, job.id)
        assert told["attempt"] == 2
        assert len({h["webhook-id"] for h, _ in receiver.came}) == 1


async def test_a_receiver_says_when_to_come_again(receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers = [Response(status_code=429, headers={"retry-after": "1"})]
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        told = await callback_of(app, job.id)
        entries = await queries.history("default", told["id"])
        told_off = next(_at(e) for e in entries if e["event"] == "failed")
        began = [_at(e) for e in entries if e["event"] == "started"]
        assert (began[1] - told_off).total_seconds() >= 1


def _at(entry: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(str(entry["at"]))


async def test_an_address_that_is_not_public_is_not_called(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTFLOW_CALLBACK_ALLOW")
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        told = await callback_of(app, job.id, "failed")
        assert (told["error"]["kind"], told["attempt"]) == ("permission", 1)
        assert receiver.came == []


async def test_a_large_result_is_left_out_and_that_is_said(
    receiver: Receiver, tmp_path: Path
) -> None:
    async with world(tmp_path) as app:
        job = await app.submit("fake.work", {"n": 3}, callback_url=receiver.url)
        await callback_of(app, job.id)
        (event,) = receiver.events
        assert event["omitted"] == ["data.result.output", "data.result.text"]
        assert event["data"]["result"]["text"] is None


async def test_no_end_is_without_its_callback_whatever_it_holds(
    receiver: Receiver, tmp_path: Path
) -> None:
    fake = Fake(Policy(backoff=0.01))
    one = Artifact("data:text/plain;base64,aGVu", "n" * 100)
    deepest: Any = 1
    for _ in range(240):
        deepest = [deepest]
    fake.answers = {
        1: Result(artifacts=[one] * 1500, usage={"u" * 60 + str(n): n for n in range(99)}),
        2: Result(output=deepest),
        3: Result(output=[deepest] * 2, text="x" * 1000),
    }
    async with running(tmp_path, fake, max_input=500) as app:
        for n in fake.answers:
            job = await app.submit("fake.work", {"n": n}, callback_url=receiver.url)
            await until(app, job.id, "succeeded")
            await callback_of(app, job.id)
    first, second, third = receiver.events
    assert first["omitted"][2:] == ["data.result.artifacts", "data.result.usage"]
    assert (first["data"]["result"]["artifacts"], first["data"]["status"]) == ([], "succeeded")
    assert second["data"]["result"]["output"] == deepest
    assert "omitted" not in third


async def test_callbacks_are_nobody_s_costs(receiver: Receiver, tmp_path: Path) -> None:
    async with world(tmp_path) as app:
        await budget(app, 2)
        for _ in range(2):  # of unknown cost, so 1 each
            job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
            await callback_of(app, job.id)
        assert await shown() == {"spent": "2", "reserved": "0", "left": "0"}
        over = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        await callback_of(app, over.id)
        assert [e["type"] for e in receiver.events] == ["job.succeeded"] * 2 + ["job.failed"]
        assert {line["task"] for line in await ledger()} == {"fake.work"}


async def test_a_receiver_that_wants_a_rest_holds_up_no_other(
    receiver: Receiver, tmp_path: Path
) -> None:
    async def late(request: Request) -> Response:
        if "busy" in request.url.path:
            return Response(status_code=429, headers={"retry-after": "60"})
        return await receiver.take(request)

    receiver.late = late
    async with world(tmp_path) as app:
        busy = await app.submit(
            "fake.work", {"n": 1}, callback_url=receiver.url.replace("hook", "busy")
        )
        await callback_of(app, busy.id, "scheduled")
        job = await app.submit("fake.work", {"n": 1}, callback_url=receiver.url)
        await callback_of(app, job.id)
        (told,) = await about(busy.id)
        rest = datetime.fromisoformat(told["wake_at"]) - utcnow()
        assert rest.total_seconds() > 40


async def test_the_end_and_its_callback_are_committed_together(
    receiver: Receiver, tmp_path: Path
) -> None:
    async with world(tmp_path) as app:
        jobs = [
            await app.submit("fake.work", {"n": 1}, callback_url=receiver.url) for _ in range(20)
        ]
        for job in jobs:
            await until(app, job.id, "succeeded")
            assert len(await about(job.id)) == 1
        plain = await app.submit("fake.work", {"n": 1})
        await until(app, plain.id, "succeeded")
        assert await about(plain.id) == []
        for job in jobs:
            await callback_of(app, job.id)
        assert len(receiver.came) == len({e["id"] for e in receiver.events}) == 20


@pytest.mark.parametrize(
    "url",
    ["ftp://a/b", "http://", "https://user:pw@host/", "//host/x", "https://host/#f", "x" * 3000],
)
async def test_what_is_no_url_to_call_is_refused(
    receiver: Receiver, tmp_path: Path, url: str
) -> None:
    async with world(tmp_path) as app:
        with pytest.raises(InvalidInput, match="callback_url"):
            await app.submit("fake.work", {}, callback_url=url)
        assert await rows("SELECT id FROM agentflow_jobs") == []


async def test_without_a_secret_no_callback_is_promised(tmp_path: Path) -> None:
    url = "https://example.com/"
    async with world(tmp_path) as app:
        with pytest.raises(InvalidInput, match="AGENTFLOW_CALLBACK_SECRET"):
            await app.submit("fake.work", {}, callback_url=url)
        with pytest.raises(InvalidInput, match="AGENTFLOW_CALLBACK_SECRET"):
            await app.adopt("fake.work", external_id="x", callback_url=url)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SECRET", "whsec_MTIz", "AGENTFLOW_CALLBACK_SECRET: .*24 to 64 bytes"),
        ("SECRET", f"{OLD} hunter2", "key 2 of 2 does not start with whsec_"),
        (
            "ALLOW",
            "10.0.0.0/99",
            "AGENTFLOW_CALLBACK_ALLOW: '10.0.0.0/99' is not an address to allow",
        ),
        ("ALLOW", "receiver.local", "'receiver.local' is not an address to allow"),
    ],
    ids=["short", "second", "range", "name"],
)
def test_a_wrong_setting_ends_the_start_and_says_why(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setenv("AGENTFLOW_CALLBACK_SECRET", OLD)
    monkeypatch.setenv(f"AGENTFLOW_CALLBACK_{name}", value)
    with pytest.raises(SettingsError, match=why):
        callbacks.callback_provider(load_settings())
