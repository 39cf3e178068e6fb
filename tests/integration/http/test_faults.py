"""What goes wrong around the server: no store, no start, a stop, a long time gone by."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from support.contract import EVENTS, PROBLEM, Contract
from support.patience import PATIENCE
from support.web import KEY, Fakes, serving, url_of, world
from tortoise.exceptions import OperationalError

from agentflow import AgentFlow, Settings
from agentflow.store import postgres_asyncpg, sqlite
from agentflow.types import utcnow
from agentflow.webhooks.signatures import sign

PATHS = [
    ("POST", "/v1/jobs", {"task": "acme.echo"}),
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/jobs/job_1", None),
    ("GET", "/v1/jobs/job_1/events", None),
    ("POST", "/v1/jobs/job_1/cancel", None),
    ("POST", "/v1/jobs/job_1/retry", None),
    ("GET", "/v1/deliveries", None),
    ("GET", "/v1/deliveries/dlv_1", None),
    ("POST", "/v1/deliveries/dlv_1/replay", None),
    ("GET", "/v1/handler-runs", None),
    ("POST", "/v1/handler-runs/run_1/retry", None),
    ("GET", f"/v1/artifacts/art_{'0' * 32}_0", None),
]


def webhook() -> dict[str, Any]:
    return {"content": b"{}", "headers": sign(KEY, f"msg-{time.time_ns()}", utcnow(), b"{}")}


async def test_before_the_start_there_is_only_health() -> None:
    asgi = AgentFlow(plugins=[]).asgi
    async with serving(asgi) as server, httpx.AsyncClient(base_url=url_of(server)) as http:
        contract = Contract((await http.get("/openapi.json")).json())
        http.event_hooks = {"response": [contract.check]}
        for method, path, said in [
            *PATHS,
            ("GET", "/v1/tasks", None),
            ("GET", "/v1/providers", None),
        ]:
            answer = await http.request(method, path, json=said)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        assert (await http.post("/webhooks/acme", **webhook())).status_code == 503
        assert (await http.get("/healthz")).json()["status"] == "ok"
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["not started"])


async def test_without_the_store_nobody_is_told_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as api:
        job = await api.waiting()
        token, body = await api.token(job["id"]), orjson.dumps({"status": "done"})
        headers = sign(KEY, "msg-again", utcnow(), body)
        jobs, letters = await api.count("agentflow_jobs"), await api.count("agentflow_inbox")

        async def post() -> httpx.Response:
            return await api.http.post(f"/webhooks/acme/{token}", content=body, headers=headers)

        async with api.http.stream(
            "GET", job["urls"]["events"], headers={"Accept": EVENTS}
        ) as live:
            lines = live.aiter_lines()
            await anext(lines)
            with monkeypatch.context() as patch:
                patch.setattr(sqlite, "_submit", _away)
                patch.setattr(postgres_asyncpg, "_translated", _away)
                paths = [(m, p.replace("job_1", job["id"]), s) for m, p, s in PATHS]
                for method, path, said in paths:
                    answer = await api.http.request(method, path, json=said)
                    assert answer.status_code == 503, path
                    assert answer.headers["retry-after"] == "2"
                    assert "gone fishing" not in answer.text
                assert (await post()).status_code == 503
                ready = await api.http.get("/readyz")
                assert ready.status_code == 503
                assert ready.json()["missing"] == [
                    "the database cannot be reached (StoreUnavailable)"
                ]
                assert (await api.http.get("/healthz")).status_code == 200
                api.app.runtime.bus.told([job["id"]])
                async with asyncio.timeout(PATIENCE):
                    assert [line async for line in lines], "the stream ends whole"
        assert await api.count("agentflow_jobs") == jobs
        assert await api.count("agentflow_inbox") == letters
        assert (await post()).json()["status"] == "stored", "what was refused is no duplicate"
        await api.until(job["id"], "succeeded")


def _away(*args: Any) -> Any:
    raise OperationalError("gone fishing")


async def test_a_stop_ends_streams_and_waits_and_keeps_nobody(tmp_path: Path) -> None:
    async with httpx.AsyncClient(timeout=PATIENCE) as http:
        async with world(tmp_path, max_wait=60) as api:
            url = api.url + (await api.waiting())["urls"]["self"]
            live = {"Accept": EVENTS}
            waits = [asyncio.create_task(http.get(f"{url}?wait=60")) for _ in range(3)]
            streams = [
                asyncio.create_task(http.get(f"{url}/events", headers=live)) for _ in range(3)
            ]
            async with asyncio.timeout(PATIENCE):
                while sum(map(len, api.app.runtime.bus._bells.values())) < 6:
                    await asyncio.sleep(0.005)
            began = time.monotonic()
        assert time.monotonic() - began < PATIENCE, "the waits are longer"
        for answer in await asyncio.gather(*waits):
            assert answer.json()["status"] == "waiting"
        for answer in await asyncio.gather(*streams):
            assert answer.text.count("data: ") == 3, "ended in good order"


async def test_a_parked_delivery_expires(tmp_path: Path) -> None:
    async with world(tmp_path, park_for=600) as api:
        delivered = await api.deliver("bank", {"id": "late", "status": "done"})
        shown = await api.read(delivered.json()["id"])
        assert shown["status"] == "parked"
        api.app.runtime.clock.advance(599)
        await api.app.runtime.writer.settled()
        assert (await api.read(shown["id"]))["status"] == "parked"
        api.app.runtime.clock.advance(2)
        await api.app.runtime.writer.settled()
        assert (await api.read(shown["id"]))["status"] == "expired"
        assert await api.count("agentflow_parked") == 0
        job = await api.submit("bank.draw", {"name": "late"})
        assert (await api.until(job["id"], "waiting", "succeeded"))["status"] == "waiting"
        answer = await api.http.post(f"/v1/deliveries/{shown['id']}/replay")
        assert answer.status_code == 202
        assert (await api.until(job["id"], "succeeded"))["external_id"] == "late"


async def test_a_replay_skips_the_check_of_the_time_and_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path) as api:
        job = await api.waiting()
        path = f"/webhooks/acme/{await api.token(job['id'])}"
        body = orjson.dumps({"id": job["external_id"], "status": "done"})
        headers = sign(KEY, "msg-1", utcnow(), body)
        api.fakes.broken_parser = True
        stored = (await api.http.post(path, content=body, headers=headers)).json()["id"]
        assert (await api.read(stored))["status"] == "failed"
        api.fakes.broken_parser = False
        api.app.runtime.clock.advance(1000)
        answer = await api.http.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.json()["detail"]) == (401, "old timestamp")
        await api.http.post(f"/v1/deliveries/{stored}/replay")
        assert (await api.until(job["id"], "succeeded", "expired"))["status"] == "succeeded"


async def test_without_a_public_url_webhooks_are_not_promised_but_heard(tmp_path: Path) -> None:
    async with world(tmp_path, public_url=None) as api:
        listed = (await api.http.get("/v1/providers")).json()["items"]
        acme = next(p for p in listed if p["name"] == "acme")
        assert (acme["webhooks_ready"], acme["webhook_url"]) == (False, None)
        job = await api.waiting()
        await api.deliver("acme", {"id": job["external_id"], "status": "done"})
        await api.until(job["id"], "succeeded")


async def test_a_larger_limit_of_inputs_makes_room_for_them(tmp_path: Path) -> None:
    async with world(tmp_path, max_input=3_000_000, max_result=4_000_000) as api:
        job = await api.finished("acme.echo", "x" * 2_000_000)
        assert len(job["result"]["output"]) == 2_000_000
        answer = await api.http.post("/v1/jobs", content=b"x" * 3_100_000)
        assert answer.status_code == 413


async def test_mounted_in_another_application_every_url_leads_back(tmp_path: Path) -> None:
    fakes = Fakes()
    app = AgentFlow(
        providers=fakes.all(), plugins=[], settings=Settings(data_dir=tmp_path, grace=0.1)
    )
    host = FastAPI(lifespan=app.lifespan)
    host.mount("/agentflow", app.asgi)
    async with serving(host) as server, httpx.AsyncClient(base_url=url_of(server)) as http:
        page = (await http.get("/agentflow/openapi.json")).json()
        assert page["servers"] == [{"url": "/agentflow"}]
        said = {"task": "acme.file", "input": {"url": "data:,hello"}}
        answer = await http.post("/agentflow/v1/jobs", json=said)
        assert answer.headers["location"].startswith("/agentflow/v1/jobs/job_")
        job = (await http.get(f"{answer.headers['location']}?wait=5")).json()
        assert job["status"] == "succeeded"
        assert (await http.get(job["result"]["artifacts"][0]["url"])).text == "hello"
        for url in job["urls"].values():
            assert url.startswith("/agentflow/v1/jobs/")
        assert (await http.get(job["urls"]["events"])).status_code == 200
        for path in ("/agentflow/nope", "/agentflow/v1/jobs/nope", "/agentflow/v1/jobs/"):
            lost = await http.get(path)
            assert (lost.status_code, lost.headers["content-type"]) == (404, PROBLEM)
        body = {"content": b"{}", "headers": sign(KEY, "msg-1", utcnow(), b"{}")}
        assert (await http.post("/agentflow/webhooks/acme", **body)).status_code == 202


async def test_handlers_set_aside_are_shown_and_tried_again(tmp_path: Path) -> None:
    app = AgentFlow(providers=Fakes().all(), plugins=[])
    broken = True

    @app.on("acme.echo", "succeeded")
    async def save(event: Any, tx: Any) -> None:
        if broken:
            raise RuntimeError("the shop is closed")

    @app.on_webhook("acme")
    async def note(event: Any, tx: Any) -> None:
        if broken:
            raise RuntimeError("the shop is closed")

    async with world(tmp_path, app=app) as api:
        await api.finished("acme.echo", 1)
        delivery = await api.deliver("acme", {"status": "x"})
        await api.read(delivery.json()["id"])
        listed = (await api.http.get("/v1/handler-runs?status=parked")).json()["items"]
        assert {run["kind"] for run in listed} == {"succeeded", "webhook"}
        assert all("the shop is closed" in run["error"] for run in listed)
        pages = (await api.http.get("/v1/handler-runs?limit=1")).json()
        assert pages["next_cursor"] == pages["items"][0]["id"]
        for run in listed:
            path = f"/v1/handler-runs/{run['id']}/retry"
            assert (await api.http.post(path)).status_code == 202
            broken = False
            assert (await api.http.post(path)).json()["status"] == "applied"
            assert (await api.http.post(path)).status_code == 409, "it is done"
            broken = True
        done = (await api.http.get("/v1/handler-runs?status=done")).json()["items"]
        assert len(done) == 2
