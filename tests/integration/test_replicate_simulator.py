"""The simulated Replicate: its signatures hold, and its faults do what they say."""

from __future__ import annotations

import asyncio
import logging
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import standardwebhooks
from agentflow_replicate import ReplicateSettings
from agentflow_replicate.simulator import ReplicateSimulator, Script, env, simulator
from agentflow_replicate.simulator.png import picture
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from support.patience import PATIENCE

from agentflow.testing.faults import Fault, Faults
from agentflow.testing.sender import is_loopback
from agentflow.testing.simulator import Json, Simulator
from agentflow.webhooks.signatures import new_secret

DATABASES = ()

SECRET = new_secret()
ALL = ["start", "output", "logs", "completed"]


class Receiver(Simulator):
    """Where webhooks arrive; it answers with `answers` in turn and 202 after that."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[int] = []

    def routes(self) -> Sequence[BaseRoute]:
        return [Route("/hooks/{token}", self.receive, methods=["POST"])]

    async def receive(self, request: Request) -> Response:
        headers, body = dict(request.headers), await request.body()
        try:
            standardwebhooks.Webhook(SECRET).verify(body, headers)
        except standardwebhooks.WebhookVerificationError:
            self.stats.counts["forged"] += 1
            return Response(status_code=401)
        self.deliveries.append(await request.json())
        self.headers.append(headers)
        return Response(status_code=self.answers.pop(0) if self.answers else 202)

    @property
    def statuses(self) -> list[str]:
        return [each["status"] for each in self.deliveries]


@dataclass
class World:
    sim: ReplicateSimulator
    receiver: Receiver
    http: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": "Bearer r8_test"})

    async def create(self, events: Any = ALL, hook: str | None = None, **script: Any) -> Any:
        """The response to a create whose webhooks come to the receiver."""
        simulate = {"seconds": 0.0, "starting": 0.0, **script}
        body = {
            "input": {"prompt": "a lighthouse", "simulate": simulate},
            "webhook": hook or f"{self.receiver.url}/hooks/t1?x=1",
            "webhook_events_filter": events,
        }
        return await self.post("/v1/models/acme/paint/predictions", body)

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return await self.http.post(
            self.sim.url + path, json=body, headers={**self.headers, **headers}
        )

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(self.sim.url + path, headers=self.headers)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await asyncio.sleep(0.005)

    async def settled(self, response: httpx.Response) -> dict[str, Any]:
        """The prediction once its webhooks are over."""
        prediction = self.sim.predictions.get(response.json()["id"])
        assert prediction is not None
        assert prediction.outbox is not None
        async with asyncio.timeout(PATIENCE):
            await prediction.outbox.settled.wait()
        return (await self.get(f"/v1/predictions/{prediction.id}")).json()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    sim = ReplicateSimulator(secret=SECRET, token="r8_test", retries=(0.01, 0.01))
    async with sim.serve(), Receiver().serve() as receiver, httpx.AsyncClient() as http:
        yield World(sim, receiver, http)


# The wire


async def test_a_life_is_told_by_signed_webhooks_in_order(world: World) -> None:
    response = await world.create()
    assert response.status_code == 201
    young = response.json()
    assert young["status"] == "starting"
    assert not young.keys() & {"started_at", "completed_at", "metrics"}
    final = await world.settled(response)
    assert world.receiver.statuses == ["processing", "processing", "succeeded"]
    assert world.receiver.deliveries[-1] == final
    assert final["metrics"].keys() == {"predict_time", "total_time"}
    assert final["webhook_events_filter"] == ALL
    assert "50%|" in final["logs"]
    assert len({each["webhook-id"] for each in world.receiver.headers}) == 3
    assert world.sim.stats.created == {"t1": 1}


@pytest.mark.parametrize(
    ("events", "statuses"),
    [
        (["completed"], ["succeeded"]),
        (["start", "completed"], ["processing", "succeeded"]),
        (None, ["succeeded"]),
    ],
)
async def test_only_the_events_asked_for_are_sent(
    world: World, events: Any, statuses: list[str]
) -> None:
    await world.settled(await world.create(events))
    assert world.receiver.statuses == statuses


@pytest.mark.parametrize("outcome", ["failed", "canceled", "aborted"])
async def test_other_ends(world: World, outcome: str) -> None:
    final = await world.settled(await world.create(outcome=outcome, error="no luck"))
    assert final["status"] == world.receiver.statuses[-1] == outcome
    assert final["output"] is None
    assert (final["error"] == "no luck") is (outcome == "failed")
    assert ("started_at" in final) is (outcome != "aborted")


async def test_strangers_and_strange_requests_are_refused(world: World) -> None:
    unknown = await world.http.get(f"{world.sim.url}/v1/predictions")
    assert unknown.status_code == 401
    assert unknown.json().keys() == {"title", "detail", "status"}
    assert (await world.get("/v1/predictions/none")).status_code == 404
    assert (await world.post("/v1/predictions/none/cancel", {})).status_code == 404
    missing = await world.post("/v1/models/acme/missing/predictions", {"input": {}})
    assert missing.status_code == 404
    for body in (
        [],
        {},
        {"input": 1},
        {"input": {"simulate": {"outcome": "odd"}}},
        {"input": {"simulate": {"faults": {"odd": 1}}}},
        {"input": {"simulate": {"faults": {"drop": 2.5}}}},
        {"input": {}, "webhook": "no URL"},
        {"input": {}, "webhook_events_filter": ["end"]},
    ):
        refused = await world.post("/v1/models/a/b/predictions", body)
        assert refused.status_code == 422, body
        assert refused.json()["detail"]
    assert (await world.post("/v1/predictions", {"input": {}})).status_code == 422
    assert world.sim.predictions.made == 0


async def test_prefer_wait_holds_the_answer(world: World) -> None:
    body = {"input": {"simulate": {"seconds": 0.1}}}
    waited = await world.post("/v1/models/a/b/predictions", body, prefer="wait=5")
    assert waited.json()["status"] == "succeeded"
    body = {"input": {"simulate": {"seconds": 30}}}
    waited = await world.post("/v1/models/a/b/predictions", body, prefer="wait=0")
    assert waited.json()["status"] == "starting"


async def test_the_list_goes_from_page_to_page(world: World) -> None:
    made = [(await world.create([], seconds=30)).json()["id"] for _ in range(3)]
    order = world.sim.predictions.get(made[0]).order  # type: ignore[union-attr]
    for _ in range(198):
        world.sim.predictions.make(order, lambda name: True)
    first = (await world.get("/v1/predictions")).json()
    assert len(first["results"]) == 100
    path = first["next"].removeprefix(world.sim.url)
    second = (await world.get(path)).json()
    third = (await world.get(second["next"].removeprefix(world.sim.url))).json()
    assert third["next"] is None
    pages = [*first["results"], *second["results"], *third["results"]]
    ids = [each["id"] for each in pages]
    assert len(set(ids)) == 201
    assert ids[-3:] == made[::-1]


async def test_a_cancel_ends_a_life_once(world: World) -> None:
    made = (await world.create(seconds=30)).json()["id"]
    first = await world.post(f"/v1/predictions/{made}/cancel", {})
    assert first.json()["status"] == "canceled"
    assert (await world.post(f"/v1/predictions/{made}/cancel", {})).json() == first.json()
    await world.until(lambda: world.receiver.statuses[-1:] == ["canceled"])
    assert world.sim.stats.counts["cancels"] == 2


async def test_outputs_are_pictures_until_they_expire(world: World) -> None:
    final = await world.settled(await world.create(images=2))
    one, two = [(await world.http.get(url)).content for url in final["output"]]
    assert one != two
    assert (await world.http.get(final["output"][0])).headers["content-type"] == "image/png"
    world.sim.predictions.retention = 0.0
    assert (await world.http.get(final["output"][0])).status_code == 404
    removed = (await world.get(f"/v1/predictions/{final['id']}")).json()
    assert removed["data_removed"]
    assert removed["status"] == "succeeded"
    assert (removed["input"], removed["output"], removed["logs"]) == ({}, None, "")


def test_a_picture_is_a_valid_png_of_its_words() -> None:
    png = picture("a lighthouse")
    assert picture("a lighthouse") == png != picture("a tower")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    place, pixels = 8, b""
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        (checksum,) = struct.unpack(">I", png[place + 8 + size : place + 12 + size])
        assert checksum == zlib.crc32(kind + content)
        pixels += content if kind == b"IDAT" else b""
        place += 12 + size
    assert kind == b"IEND"
    assert len(zlib.decompress(pixels)) == 128 * (1 + 3 * 128)


# Webhook faults


async def test_a_duplicate_has_the_same_id(world: World) -> None:
    await world.settled(await world.create(["completed"], faults={"duplicate": 1}))
    assert world.receiver.statuses == ["succeeded"] * 2
    assert len({each["webhook-id"] for each in world.receiver.headers}) == 1


async def test_reordered_webhooks_come_after_the_last_one(world: World) -> None:
    await world.settled(await world.create(faults={"reorder": True}))
    assert world.receiver.statuses == ["succeeded", "processing", "processing"]


async def test_a_delayed_webhook_is_overtaken(world: World) -> None:
    world.sim.faults.update(delay_seconds=0.1)
    await world.create(["start", "completed"], faults={"delay": 1})
    await world.until(lambda: len(world.receiver.deliveries) == 2)
    assert world.receiver.statuses == ["succeeded", "processing"]


async def test_a_dropped_webhook_never_comes(world: World) -> None:
    final = await world.settled(await world.create(faults={"drop": True}))
    assert final["status"] == "succeeded"
    assert world.receiver.deliveries == []
    assert world.sim.stats.counts["webhooks_dropped"] == 3
    assert world.sim.stats.counts["webhooks_tried"] == 0


async def test_a_wrong_signature_is_one_and_the_retry_is_right(world: World) -> None:
    await world.settled(await world.create(["completed"], faults={"wrong_signature": 1}))
    assert world.receiver.stats.counts["forged"] == 1
    assert world.receiver.statuses == ["succeeded"]
    assert world.sim.stats.answers == {"401": 1, "202": 1}


async def test_only_the_last_webhook_is_retried(world: World) -> None:
    world.receiver.answers = [500, 404, 500, 302, 202]
    await world.settled(await world.create())
    assert world.receiver.statuses == ["processing"] * 2 + ["succeeded"] * 3
    ids = [each["webhook-id"] for each in world.receiver.headers]
    assert len(set(ids)) == 3
    assert len(set(ids[2:])) == 1
    assert world.sim.stats.counts["webhooks_delivered"] == 1


async def test_the_retries_end(world: World) -> None:
    world.receiver.answers = [503] * 10
    await world.settled(await world.create(["completed"]))
    assert world.receiver.statuses == ["succeeded"] * 3
    assert world.sim.stats.counts["webhooks_given_up"] == 1


async def test_the_last_webhook_may_come_before_the_answer(world: World) -> None:
    response = await world.create(faults={"webhook_before_response": 1})
    assert world.receiver.statuses[-1] == "succeeded"
    assert response.json()["status"] == "starting"


async def test_webhooks_stay_on_this_machine(world: World) -> None:
    await world.settled(await world.create(["completed"], hook="https://example.com/hooks/t9"))
    assert world.sim.stats.counts["webhooks_refused"] == 1
    assert world.sim.stats.counts["webhooks_tried"] == 0
    assert is_loopback("http://127.0.0.1:80/x")
    assert is_loopback("http://[::1]/x")
    assert is_loopback("http://localhost/x")
    for url in (
        "http://127.0.0.1.example.com/",
        "ftp://127.0.0.1/",
        "http://10.0.0.1/",
        "x",
        "//[",
    ):
        assert not is_loopback(url)


# Call faults


@pytest.mark.parametrize(
    ("fault", "status", "made"),
    [("error_before", 500, 0), ("error_after", 500, 1), ("rate_limit", 429, 0)],
)
async def test_errors_before_and_after_the_effect(
    world: World, fault: str, status: int, made: int
) -> None:
    world.sim.faults.update({fault: 1, "error_status": 500, "rate_limit_seconds": 3})
    response = await world.create()
    assert response.status_code == response.json()["status"] == status
    assert world.sim.predictions.made == made
    assert world.sim.stats.faults[fault] == 1
    if fault == "rate_limit":
        assert "resets in ~3s" in response.json()["detail"]
        assert response.headers["ratelimit-reset"] == "3"
    assert (await world.create()).status_code == 201


@pytest.mark.parametrize("fault", ["reset", "hang"])
async def test_a_connection_that_closes_without_an_answer(
    world: World, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.sim.faults.update({fault: 1, "hang_seconds": 0.05})
    with caplog.at_level(logging.ERROR), pytest.raises(httpx.TransportError):
        await world.create()
    assert world.sim.predictions.made == 1
    assert (await world.create()).status_code == 201
    assert not caplog.records


async def test_a_slow_body_arrives_whole(world: World) -> None:
    world.sim.faults.update(slow_body=1, slow_seconds=0.2)
    started = asyncio.get_running_loop().time()
    assert (await world.create()).json()["status"] == "starting"
    assert asyncio.get_running_loop().time() - started >= 0.2


async def test_a_script_is_counted_over_the_retries_of_a_job(world: World) -> None:
    script = {"faults": {"rate_limit": 1, "fail": 1}}
    assert (await world.create(**script)).status_code == 429
    assert (await world.settled(await world.create(**script)))["status"] == "failed"
    assert (await world.settled(await world.create(**script)))["status"] == "succeeded"
    assert (await world.create(**script, key="another job")).status_code == 429


# Control


async def test_faults_are_set_and_seen_over_http(world: World) -> None:
    given = {"drop": 0.25, "reset": 2, "hang": True, "delay_seconds": 3, "seed": 7}
    shown = (await world.post("/_faults", given)).json()
    assert shown["drop"] == {"next": 0, "probability": 0.25}
    assert shown["reset"] == {"next": 2, "probability": 0.0}
    assert shown["hang"] == {"next": 0, "probability": 1.0}
    assert world.sim.faults.delay_seconds == 3
    for wrong in ({"drop": 2.5}, {"oops": 1}, {"seed": 0.5}, {"delay_seconds": "x"}, [1]):
        refused = await world.post("/_faults", wrong)
        assert refused.status_code == 422
        assert refused.json()["detail"]
    assert (await world.get("/_faults")).json() == shown, "a refused change changes nothing"
    cleared = (await world.http.delete(f"{world.sim.url}/_faults")).json()
    assert not any(each["probability"] for each in cleared.values() if isinstance(each, dict))


async def test_the_counters_are_shown(world: World) -> None:
    await world.settled(await world.create(["completed"]))
    stats = (await world.get("/_stats")).json()
    assert stats["created"] == {"t1": 1}
    assert stats["answers"] == {"202": 1}
    assert stats["counts"]["creates"] == stats["counts"]["webhooks_delivered"] == 1
    assert stats["faults"] == {}


def test_a_seed_repeats_the_faults() -> None:
    def rolls(seed: int) -> list[bool]:
        faults = Faults(seed=seed, drop=Fault(probability=0.5))
        return [faults.hit("drop") for _ in range(50)]

    assert rolls(1) == rolls(1) != rolls(2)
    assert 10 < sum(rolls(1)) < 40


async def test_old_predictions_are_forgotten() -> None:
    sim = ReplicateSimulator(token="t", most=5)
    async with sim.serve():
        order = Script(instant=True)
        for n in range(9):
            body = {"input": {"simulate": order.model_dump(exclude_defaults=True), "n": n}}
            async with httpx.AsyncClient() as http:
                url = f"{sim.url}/v1/models/a/b/predictions"
                await http.post(url, json=body, headers={"authorization": "Bearer t"})
        assert len(sim.predictions.newest(100, 100)) == 5


# Ways to run it


async def test_the_settings_lead_to_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    async with simulator(SECRET, "r8_dev").serve() as sim:
        for name, value in env(sim).items():
            monkeypatch.setenv(name, value)
        settings = ReplicateSettings()
        assert settings.base_url == sim.url
        assert settings.output_hosts == ("127.0.0.1",)
        async with httpx.AsyncClient() as http:
            bearer = {"authorization": f"Bearer {settings.api_token.get_secret_value()}"}
            key = await http.get(f"{sim.url}/v1/webhooks/default/secret", headers=bearer)
        assert key.json() == {"key": settings.webhook_secret.get_secret_value()}


def test_it_runs_in_a_thread_for_code_without_a_loop() -> None:
    with Receiver().serve_in_thread() as receiver, httpx.Client() as http:
        assert http.get(f"{receiver.url}/_stats").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(receiver.url)


def test_a_port_that_is_taken_is_an_error() -> None:
    with Receiver().serve_in_thread() as receiver:
        port = int(receiver.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), Receiver().serve_in_thread(port):
            pass


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "agentflow_replicate.simulator", "--secret", SECRET]
    options = ["--token", "r8_x", "--faults", '{"rate_limit": 1}']
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        headers = {"authorization": "Bearer r8_x"}
        path = f"{url}/v1/models/a/b/predictions"
        statuses = [
            httpx.post(path, json={"input": {}}, headers=headers).status_code for _ in range(2)
        ]
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    assert statuses == [429, 201]


async def test_a_simulator_of_ones_own_is_a_few_lines() -> None:
    class Echo(Simulator):
        def routes(self) -> Sequence[BaseRoute]:
            return [Route("/", self.echo, methods=["POST"])]

        async def echo(self, request: Request) -> Response:
            async def effect() -> Response:
                return Json({"done": True})

            create: Callable[[], Awaitable[Response]] = effect
            return await self.faulty(create, self.hit)

    async with Echo().serve() as sim, httpx.AsyncClient() as http:
        sim.faults.update(rate_limit=1, rate_limit_seconds=2)
        throttled = await http.post(sim.url)
        assert (throttled.status_code, throttled.headers["retry-after"]) == (429, "2")
        assert (await http.post(sim.url)).json() == {"done": True}
