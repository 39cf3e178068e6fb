"""The task `replicate.predict` through the real SDK, against the simulator over loopback HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import structlog
from agentflow_replicate import Predict, ReplicateSettings
from agentflow_replicate.provider import MOST_LOOKS, SKEW, cancel, fetch, find, predict
from agentflow_replicate.simulator import ReplicateSimulator
from support.patience import PATIENCE

from agentflow import (
    Accepted,
    AuthenticationFailed,
    Call,
    Canceled,
    Failed,
    InvalidInput,
    OutcomeUnknown,
    Progressed,
    ProviderError,
    ProviderFailure,
    RateLimited,
    Succeeded,
    Unavailable,
)

DATABASES = ()

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FILES = {f"art_{'0' * 31}{n}_0": f"file {n}".encode() for n in range(3)}
"""What is in custody."""


@dataclass
class World:
    """A simulator and calls that lead to it."""

    sim: ReplicateSimulator
    http: httpx.AsyncClient

    def call(self, token: str = "token-1", **changes: Any) -> Call:
        settings = ReplicateSettings(api_token="r8_test", base_url=self.sim.url or "http://[::1]:9")
        call = Call(
            settings=settings,
            http=self.http,
            job_id="job_x",
            attempt=1,
            token=token,
            # Nobody listens there: the webhook only carries the token.
            webhook_url=f"http://127.0.0.1:9/webhooks/replicate/{token}",
            idempotency_key=token,
            timeout=10.0,
            deadline=datetime.now(UTC) + timedelta(hours=1),
            log=structlog.get_logger(),
            on_progress=lambda fraction, message: None,
            open_artifact=open_artifact,
        )
        return replace(call, **changes)

    async def run(self, input: dict[str, Any] | None = None, **where: Any) -> Any:
        return await predict(where.pop("call", None) or self.call(), asked(input, **where))

    async def refused(self, input: dict[str, Any] | None = None, **where: Any) -> ProviderFailure:
        with pytest.raises(ProviderFailure) as raised:
            await self.run(input, **where)
        return raised.value

    @property
    def made(self) -> int:
        return self.sim.predictions.made


def asked(input: dict[str, Any] | None = None, **where: Any) -> Predict:
    return Predict.model_validate({**(where or {"model": "acme/paint"}), "input": input or {}})


@asynccontextmanager
async def open_artifact(id: str) -> AsyncIterator[AsyncIterator[bytes]]:
    if id not in FILES:
        raise InvalidInput("There is no such file.")

    async def chunks() -> AsyncIterator[bytes]:
        yield FILES[id]

    yield chunks()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    sim = ReplicateSimulator(token="r8_test", retries=())
    async with sim.serve(), httpx.AsyncClient() as http:
        yield World(sim, http)


def simulate(**script: Any) -> dict[str, Any]:
    return {"prompt": "a lighthouse", "simulate": {"seconds": 0.0, "starting": 0.0, **script}}


async def ended(world: World, id: str) -> Any:
    """The final fact, by polling."""
    async with asyncio.timeout(PATIENCE):
        while isinstance(state := await fetch(world.call(), id), Progressed):
            await asyncio.sleep(0.01)
    return state


# Creating


@pytest.mark.parametrize(
    ("where", "target"),
    [
        ({"model": "acme/paint"}, {"model": "acme/paint"}),
        ({"model": f"acme/paint:{VERSION}"}, {"version": VERSION}),
        ({"version": VERSION}, {"version": VERSION}),
        ({"deployment": "acme/shop"}, {"deployment": "acme/shop"}),
    ],
)
async def test_a_prediction_is_made_once_and_comes_to_a_result(
    world: World, where: dict[str, str], target: dict[str, str]
) -> None:
    accepted = await world.run(simulate(), **where)
    assert isinstance(accepted, Accepted)
    order = world.sim.predictions.get(accepted.external_id).order
    assert order.target == target
    assert order.webhook == world.call().webhook_url
    assert order.events == ["start", "logs", "completed"]

    state = await ended(world, accepted.external_id)
    assert isinstance(state, Succeeded)
    assert state.external_id == accepted.external_id
    assert set(state.result.usage) == {"predict_seconds", "total_seconds"}
    (file,) = state.result.artifacts
    assert state.result.output == [file.url]
    assert file.name == "out-0.png"
    assert (await world.http.get(file.url)).content.startswith(b"\x89PNG")
    assert world.sim.stats.counts["leaked_tokens"] == 0
    assert world.made == 1


async def test_without_a_webhook_none_is_asked_for(world: World) -> None:
    accepted = await world.run(simulate(), call=world.call(webhook_url=None))
    assert world.sim.predictions.get(accepted.external_id).order.webhook is None


async def test_an_answer_that_is_final_already_is_the_outcome(world: World) -> None:
    state = await world.run(simulate(instant=True, output="hello"))
    assert isinstance(state, Succeeded)
    assert state.external_id
    assert state.result.text == "hello"


async def test_answers_that_the_sdk_cannot_read_are_read(world: World) -> None:
    aborted = await world.run(simulate(instant=True, outcome="aborted"))
    assert isinstance(aborted, Failed)
    assert aborted.error.kind == "timeout"
    accepted = await world.run(simulate(nulls=["version", "model"]))
    assert isinstance(accepted, Accepted)
    assert isinstance(await ended(world, accepted.external_id), Succeeded)


async def test_a_webhook_may_come_before_the_answer(world: World) -> None:
    accepted = await world.run(simulate(faults={"webhook_before_response": 1}))
    assert isinstance(accepted, Accepted)
    assert world.sim.stats.answers["error"] == 3


@pytest.mark.parametrize(
    ("fault", "made"),
    [("reset", 1), ("hang", 1), ("slow_body", 1), ("error_after", 1), ("error_before", 0)],
)
async def test_when_bytes_may_have_left_the_outcome_is_unknown_until_found(
    world: World, fault: str, made: int
) -> None:
    world.sim.faults.update(slow_seconds=30)
    since, call = datetime.now(UTC), world.call(timeout=0.6)
    failure = await world.refused(simulate(faults={fault: 1}), call=call)
    assert type(failure) is OutcomeUnknown
    assert world.made == world.sim.stats.created["token-1"] == made
    assert world.sim.stats.counts["creates"] == 1, "nobody tried again"

    found = await find(world.call(), "token-1", since)
    assert (found is not None) is bool(made)
    if found:
        assert isinstance(await ended(world, found), Succeeded)


async def test_a_rate_limit_is_reported_at_once_with_its_end(world: World) -> None:
    world.sim.faults.update(rate_limit=1, rate_limit_seconds=7)
    failure = await world.refused(simulate())
    assert type(failure) is RateLimited
    assert failure.retry_after == 7
    assert world.sim.stats.counts["creates"] == 1
    assert isinstance(await world.run(simulate()), Accepted)


async def test_where_nobody_listens_nothing_was_sent(world: World) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        settings = ReplicateSettings(api_token="r8_test", base_url=url)
        failure = await world.refused(call=world.call(settings=settings))
    assert type(failure) is Unavailable
    assert failure.retryable


@pytest.mark.parametrize("token", ["r8_wrong", ""])
async def test_a_wrong_token_and_none_are_refused(world: World, token: str) -> None:
    settings = ReplicateSettings(api_token=token, base_url=world.sim.url)
    failure = await world.refused(call=world.call(settings=settings))
    assert type(failure) is AuthenticationFailed
    assert world.made == 0


async def test_what_replicate_does_not_accept_is_invalid_input(world: World) -> None:
    missing = await world.refused(model="acme/missing")
    assert type(missing) is InvalidInput
    wrong = await world.refused({"simulate": {"second": 1}})
    assert type(wrong) is InvalidInput
    assert "input.simulate.second" in wrong.message
    unsendable = await world.refused({"strength": float("nan")})
    assert type(unsendable) is InvalidInput
    assert world.made == 0


# Files


async def test_files_in_custody_are_uploaded_and_urls_pass_as_they_are(world: World) -> None:
    one, two, three = FILES
    plain = {
        "prompt": f"about {one}",
        "video": "https://example.com/v.mp4",
        "small": "data:text/plain;base64,aGk=",
    }
    input = {**simulate(), **plain, "image": one, "more": [{"mask": two}, three]}
    accepted = await world.run(input)
    sent = world.sim.predictions.get(accepted.external_id).order.input
    assert {name: sent[name] for name in plain} == plain
    urls = [sent["image"], sent["more"][0]["mask"], sent["more"][1]]
    uploaded = [world.sim.files[url.rpartition("/")[2]] for url in urls]
    assert [file.content for file in uploaded] == list(FILES.values())
    assert uploaded[0].name == f"{one}.bin"


async def test_an_upload_names_what_the_file_is(world: World, monkeypatch: Any) -> None:
    one = next(iter(FILES))
    monkeypatch.setitem(FILES, one, b"\x89PNG\r\n\x1a\n--\r\nand\r\n\r\nmore\r\n")
    await world.run({**simulate(), "image": one})
    (file,) = world.sim.files.values()
    assert (file.name, file.content_type) == (f"{one}.png", "image/png")
    assert file.content == FILES[one]


async def test_a_file_that_does_not_exist_stops_the_call(world: World) -> None:
    failure = await world.refused({"image": f"art_{'f' * 32}_0"})
    assert type(failure) is InvalidInput
    assert world.sim.stats.counts["creates"] == 0


# Asking


async def test_progress_is_read_from_the_logs(world: World) -> None:
    accepted = await world.run(simulate(seconds=0.4))
    seen = set()
    while isinstance(state := await fetch(world.call(), accepted.external_id), Progressed):
        seen.add((state.message, state.fraction))
        await asyncio.sleep(0.02)
    assert {("processing", None), ("processing", 0.5)} <= seen


async def test_what_replicate_does_not_know_any_more_is_lost(world: World) -> None:
    for id in ("nobody", "../files/x", ""):
        unknown = await fetch(world.call(), id)
        assert isinstance(unknown, Failed)
        assert unknown.error.kind == "result_lost"
    accepted = await world.run(simulate())
    await ended(world, accepted.external_id)
    world.sim.predictions.retention = 0.0
    removed = await fetch(world.call(), accepted.external_id)
    assert isinstance(removed, Failed)
    assert removed.error.kind == "result_lost"


async def test_a_prediction_is_found_by_its_token_pages_back(world: World) -> None:
    call, since = world.call("wanted"), datetime.now(UTC)
    wanted = await world.run(simulate(), call=call)
    order = world.sim.predictions.get(wanted.external_id).order
    for _ in range(230):
        other = world.sim.predictions.make(replace(order, webhook=None), lambda name: False)
        other.order = replace(order, webhook="http://127.0.0.1:9/webhooks/replicate/other")
    assert await find(call, "wanted", since) == wanted.external_id
    assert world.sim.stats.counts["lists"] == 3
    assert await find(call, "unknown", since) is None
    assert await find(call, "wanted", since + SKEW + timedelta(seconds=5)) is None


async def test_a_running_prediction_is_canceled(world: World) -> None:
    accepted = await world.run(simulate(seconds=30))
    state = await cancel(world.call(), accepted.external_id)
    assert state == Canceled(external_id=accepted.external_id)
    assert await fetch(world.call(), accepted.external_id) == state


async def test_what_has_ended_is_not_canceled(world: World) -> None:
    accepted = await world.run(simulate(instant=False))
    await ended(world, accepted.external_id)
    assert isinstance(await cancel(world.call(), accepted.external_id), Succeeded)
    assert await cancel(world.call(), "nobody") is None


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ({"outcome": "failed", "error": "CUDA out of memory"}, "provider_error"),
        ({"faults": {"fail": True}, "error": "NSFW content detected"}, "content_rejected"),
        ({"outcome": "aborted"}, "timeout"),
        ({"faults": {"abort": True}}, "timeout"),
    ],
)
async def test_how_predictions_fail(world: World, script: dict[str, Any], kind: str) -> None:
    accepted = await world.run(simulate(**script))
    state = await ended(world, accepted.external_id)
    assert isinstance(state, Failed)
    assert state.error.kind == kind


# Answers that the simulator does not give


@asynccontextmanager
async def scripted(answer: Callable[[httpx.Request], httpx.Response]) -> AsyncIterator[World]:
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport) as http:
        yield World(ReplicateSimulator(token="r8_test"), http)


@pytest.mark.parametrize("status", [429, 503, 504])
async def test_the_sdk_does_not_repeat_questions_by_itself(status: int) -> None:
    asked_for: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked_for.append(request.url.path)
        return httpx.Response(status, headers={"retry-after": "40"})

    async with scripted(answer) as world:
        with pytest.raises(ProviderFailure) as raised:
            await fetch(world.call(), "p1")
    assert raised.value.retry_after == 40 or status == 504
    assert raised.value.retryable
    assert asked_for == ["/v1/predictions/p1"]


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(201, json={"status": "starting"}), OutcomeUnknown),
        (httpx.Response(201, json=[]), OutcomeUnknown),
        (httpx.Response(200, text="<html>"), OutcomeUnknown),
        (httpx.Response(204), OutcomeUnknown),
        (httpx.Response(500, json=["not an object"]), OutcomeUnknown),
        (httpx.Response(422, json=["not an object"]), InvalidInput),
        (httpx.Response(503, headers={"retry-after": "3"}), Unavailable),
        (httpx.Response(307, headers={"location": "https://elsewhere.example/"}), ProviderError),
    ],
)
async def test_strange_answers_to_a_create(response: httpx.Response, kind: type) -> None:
    hosts: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return response

    async with scripted(answer) as world:
        assert type(await world.refused()) is kind
    assert hosts == ["::1"]


async def test_a_failed_upload_leaves_nothing_unknown() -> None:
    for refused in (httpx.Response(502), httpx.Response(201, json={"id": "not a whole file"})):

        def answer(request: httpx.Request, refused: httpx.Response = refused) -> httpx.Response:
            assert request.url.path == "/v1/files"
            return refused

        async with scripted(answer) as world:
            failure = await world.refused({"image": next(iter(FILES))})
        assert type(failure) in (Unavailable, InvalidInput)


async def test_the_answer_to_an_upload_is_not_taken_for_the_one_to_the_create(
    world: World,
) -> None:
    input = {**simulate(faults={"reset": 1}), "image": next(iter(FILES))}
    assert type(await world.refused(input)) is OutcomeUnknown
    assert world.sim.stats.counts["uploads"] == world.made == 1


async def test_a_search_opens_only_so_many_predictions() -> None:
    now, opened = datetime.now(UTC).isoformat(), []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/predictions":
            opened.append(request.url.path)
            return httpx.Response(200, json={"id": "p"})
        rows = [{"id": f"p{n}", "created_at": now} for n in range(40)]
        return httpx.Response(200, json={"next": "/v1/predictions?cursor=x", "results": rows})

    async with scripted(answer) as world:
        assert await find(world.call(), "token-1", LONG_AGO) is None
    assert len(opened) == MOST_LOOKS


async def test_the_list_need_not_tell_the_webhook() -> None:
    now = datetime.now(UTC).isoformat()
    opened: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer r8_test"
        assert request.url.host == "::1", "the token goes nowhere else"
        found = request.url.path.removeprefix("/v1/predictions").strip("/")
        if found:
            opened.append(found)
            hook = {"p2": "https://us.example/webhooks/replicate/token-1?x=1"}.get(found)
            return httpx.Response(200, json={"id": found, "created_at": now, "webhook": hook})
        row = "p1" if not request.url.query else "p2"
        following = "https://evil.example/v1/predictions?cursor=abc" if row == "p1" else None
        rows = [None, {"id": row, "created_at": now, "status": "aborted"}]
        return httpx.Response(200, json={"next": following, "results": rows})

    async with scripted(answer) as world:
        assert await find(world.call(), "token-1", LONG_AGO) == "p2"
    assert opened == ["p1", "p2"]


async def test_a_status_nobody_knows_yet_is_no_reason_to_ask_again_at_once() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "p1", "status": "thinking"})

    async with scripted(answer) as world:
        assert await fetch(world.call(), "p1") == Progressed(message="thinking", external_id="p1")


@pytest.mark.live
@pytest.mark.skipif("REPLICATE_API_TOKEN" not in os.environ, reason="needs REPLICATE_API_TOKEN")
async def test_replicate_itself() -> None:
    """Costs a fraction of a cent: replicate/hello-world on a CPU."""
    async with httpx.AsyncClient() as http:
        world = World(ReplicateSimulator(token="unused"), http)
        call = world.call(settings=ReplicateSettings(), webhook_url=None, timeout=60.0)
        made = await predict(call, asked({"text": "Alice"}, version=VERSION))
        assert isinstance(made, Accepted | Succeeded)
        assert made.external_id is not None
        async with asyncio.timeout(100):
            while isinstance(state := await fetch(call, made.external_id), Progressed):
                await asyncio.sleep(1)
    assert isinstance(state, Succeeded)
    assert state.result.text == "hello Alice"
