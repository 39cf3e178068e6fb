"""What is served beside jobs, and what everything else is told."""

from __future__ import annotations

import asyncio
from typing import Any

import jsonschema
import pytest
from support.web import World

from agentflow.core.policy import Policy

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_tasks_come_with_what_they_take(api: World) -> None:
    page = (await api.http.get("/v1/tasks")).json()
    tasks = {task["name"]: task for task in page["items"]}
    draw = tasks["acme.draw"]
    assert list(tasks) == sorted(tasks)
    assert draw["provider"] == "acme"
    assert draw["description"] == "Draw something, some day."
    assert draw["policy"]["timeout"] == Policy().timeout
    assert draw["abilities"] == {"webhooks": True, "fetch": False, "find": False, "cancel": False}
    assert tasks["acme.echo"]["input_schema"] == {}
    jsonschema.Draft202012Validator.check_schema(draw["input_schema"])
    for input, good in (({"name": "x"}, True), ({"name": ""}, False), ({}, False)):
        fits = jsonschema.Draft202012Validator(draw["input_schema"]).is_valid(input)
        assert fits is good
        answer = await api.http.post("/v1/jobs", json={"task": "acme.draw", "input": input})
        assert (answer.status_code == 201) is good


async def test_providers_say_where_their_webhooks_go(api: World) -> None:
    page = (await api.http.get("/v1/providers")).json()
    providers = {provider["name"]: provider for provider in page["items"]}
    assert providers["acme"]["webhook_url"] == "http://127.0.0.1:1/webhooks/acme/{token}"
    assert providers["bank"]["webhook_url"] == "http://127.0.0.1:1/webhooks/bank"
    assert providers["mute"]["webhook_url"] is None
    assert providers["mute"]["webhooks"] == "none"
    assert "acme.draw" in providers["acme"]["tasks"]
    assert "whsec_" not in str(page)


async def test_health_is_told_as_it_is(api: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await api.http.get("/healthz")).json()["status"] == "ok"
    ready = await api.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["missing"]) == (200, "ok", [])
    ended = asyncio.ensure_future(asyncio.sleep(0))
    ended.set_name("agentflow-writer")
    await ended
    monkeypatch.setattr(api.app.runtime, "_tasks", [ended])
    ready = await api.http.get("/readyz")
    assert (ready.status_code, ready.json()["missing"]) == (503, ["agentflow-writer has stopped"])


ALLOWED = {
    "/v1/jobs": {"GET", "HEAD", "POST"},
    "/v1/jobs/x": {"GET", "HEAD"},
    "/v1/jobs/x/cancel": {"POST"},
    "/v1/jobs/x/retry": {"POST"},
    "/v1/jobs/x/events": {"GET", "HEAD"},
    "/v1/artifacts/x": {"GET", "HEAD"},
    "/v1/tasks": {"GET", "HEAD"},
    "/v1/providers": {"GET", "HEAD"},
    "/v1/deliveries": {"GET", "HEAD"},
    "/v1/deliveries/x": {"GET", "HEAD"},
    "/v1/deliveries/x/replay": {"POST"},
    "/v1/handler-runs": {"GET", "HEAD"},
    "/v1/handler-runs/x/retry": {"POST"},
    "/webhooks/acme": {"POST"},
    "/webhooks/acme/x": {"POST"},
    "/healthz": {"GET", "HEAD"},
    "/readyz": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
}


METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"}


@pytest.mark.parametrize("path", ALLOWED)
async def test_a_method_that_is_not_there_is_a_405_that_names_those_that_are(
    api: World, path: str
) -> None:
    for method in METHODS - ALLOWED[path]:
        answer = await api.http.request(method, path, content=b"{}")
        assert answer.status_code == 405, method
        assert set(answer.headers["allow"].split(", ")) == ALLOWED[path]


@pytest.mark.parametrize("path", [p for p, methods in ALLOWED.items() if "HEAD" in methods])
async def test_head_answers_as_get_does(api: World, path: str) -> None:
    got, headed = await api.http.get(path), await api.http.head(path)
    assert headed.status_code == got.status_code
    assert headed.content == b""
    for name in ("content-type", "content-length"):
        assert headed.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v2/jobs", "/v1/job", "/v1/jobs/", "/V1/jobs", "/v1/jobs/x/", "/v1//jobs",
     "//v1/jobs", "/v1/jobs/x/y/z", "/docs", "/favicon.ico", "/.env", "/v1/jobs%2fx", "/%00",
     "/%0a", "/v1/event", "/agentflow.db", "/v1/artifacts/..%2f..%2fagentflow.db", "/%ff"],
)  # fmt: skip
async def test_what_is_not_there_is_a_404(api: World, path: str) -> None:
    answer = await api.http.get(f"{api.url}{path}")
    assert answer.status_code == 404


ODD = {
    "path beyond ASCII": b"GET /v1/jobs/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "header beyond ASCII": b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\nprefer: wait=\xb2\r\n\r\n",
    "accept of bytes": b"GET /v1/jobs/x/events HTTP/1.1\r\nhost: x\r\naccept: \xff\r\n\r\n",
    "query of bytes": b"GET /v1/jobs?task=\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "half an escape": b"GET /v1/jobs?task=%f HTTP/1.1\r\nhost: x\r\n\r\n",
    "no host": b"GET /v1/jobs HTTP/1.0\r\n\r\n",
    "a whole URL": b"GET http://evil.test/v1/jobs HTTP/1.1\r\nhost: x\r\n\r\n",
    "a long path": b"GET /v1/jobs/%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 30_000),
    "a long query": b"GET /v1/jobs?tag=%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 30_000),
    "many headers": b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\n%s\r\n" % (b"x: y\r\n" * 500),
    "two lengths": b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"content-length: 3\r\n\r\n{}",
    "length and chunks": b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "an upgrade": b"GET /v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
    b"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
}


@pytest.mark.filterwarnings("ignore")  # uvicorn warns of an upgrade it does not do
@pytest.mark.parametrize("request_", ODD.values(), ids=ODD.keys())
async def test_an_odd_request_is_no_fault_of_ours(api: World, request_: bytes) -> None:
    said = await api.raw(request_, until=b"\r\n\r\n")
    assert said.split()[1] in {b"200", b"400", b"404", b"422"}, said
    assert (await api.http.get("/healthz")).status_code == 200


async def test_a_hundred_clients_at_once_are_all_served(api: World) -> None:
    async def client(number: int) -> Any:
        job = await api.submit("acme.echo", number)
        while job["status"] != "succeeded":
            job = (await api.http.get(f"/v1/jobs/{job['id']}?wait=1")).json()
        return job["result"]["output"]

    assert await asyncio.gather(*(client(i) for i in range(100))) == list(range(100))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9"])
async def test_a_page_of_another_site_cannot_make_a_browser_submit(api: World, origin: str) -> None:
    body = b'{"task": "acme.draw", "input": {"name": "x"}}'
    simple = {"origin": origin, "content-type": "text/plain"}
    assert (await api.http.post("/v1/jobs", content=body, headers=simple)).status_code == 403
    made = (await api.http.post("/v1/jobs", content=body)).json()
    cancel = await api.http.post(f"/v1/jobs/{made['id']}/cancel", headers={"origin": origin})
    assert cancel.status_code == 403
    asked = {"origin": origin, "content-type": "application/json"}  # the browser asks CORS first
    assert (await api.http.post("/v1/jobs", content=body, headers=asked)).status_code == 201
