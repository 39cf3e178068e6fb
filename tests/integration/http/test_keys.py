"""API keys on the wire: who is let in, to what, and what nobody gets to read."""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import structlog
from support.cli import Ran, agentflow
from support.keyed import bearer, new
from support.web import KEY, World, serving, world
from tortoise.connection import get_connection

from agentflow import logs
from agentflow.store.keys import key_id, new_key, revoke_key
from agentflow.types import utcnow
from agentflow.web.guard import SECURITY
from agentflow.web.routes import Operation
from agentflow.web.server import OPERATIONS
from agentflow.webhooks.signatures import sign

OPEN = {
    "GET /healthz",
    "GET /metrics",  # it asks for a token of its own
    "GET /readyz",
    "POST /webhooks/{provider}",
    "POST /webhooks/{provider}/{token}",
}
CLOSED = [o for o in OPERATIONS if o.scope != "open"]


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def path_of(operation: Operation) -> str:
    return re.sub(r"{\w+}", "x", operation.path)


@pytest_asyncio.fixture
async def closed(tmp_path: Path) -> AsyncIterator[World]:
    """A server that requires keys; nothing is sent along by itself."""
    async with world(tmp_path, require_keys=True) as running:
        yield running


@pytest_asyncio.fixture
async def free(tmp_path: Path) -> AsyncIterator[World]:
    """A server that requires none."""
    async with world(tmp_path) as running:
        yield running


# -- who is let in -----------------------------------------------------------------------------


async def test_only_health_numbers_and_webhooks_need_no_key() -> None:
    assert {named(o) for o in OPERATIONS if o.scope == "open"} == OPEN


async def test_nobody_comes_in_without_a_good_key(closed: World) -> None:
    """Whatever else is wrong with the request: a stranger learns nothing of what is there."""
    revoked, expired = await new(), await new(expires=-1)
    await revoke_key(key_id(revoked) or "", utcnow())
    wrong = f"af_{key_id(await new())}_{'x' * 43}"
    told = set()
    for operation in CLOSED:
        closed.app.runtime.context.auth._misses._counted.clear()
        for key in (new_key()[1], "secret", "af_x", wrong, revoked, expired):
            for headers in (bearer(key), {"X-API-Key": key}):
                answer = await closed.http.request(
                    operation.method, path_of(operation), headers=headers, content=b"no json"
                )
                assert answer.status_code == 401, named(operation)
                assert answer.headers["www-authenticate"] == "Bearer"
                told.add(answer.text)
        answer = await closed.http.request(operation.method, path_of(operation))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "Authorization: Bearer" in answer.json()["detail"]
    assert len(told) == 1, "nobody learns why"


async def test_a_key_opens_what_its_scope_says(closed: World) -> None:
    order = ["read", "write", "admin"]
    keys = {scope: bearer(await new(scope=scope)) for scope in order}
    for operation in CLOSED:
        usual = "read" if operation.method == "GET" else "write"
        assert order.index(operation.scope) >= order.index(usual), "what the method needs, or more"
        for scope, headers in keys.items():
            answer = await closed.http.request(
                operation.method, path_of(operation), headers=headers
            )
            allowed = order.index(scope) >= order.index(operation.scope)
            assert (answer.status_code == 403) is not allowed, named(operation)
            assert answer.status_code != 401


async def test_head_is_closed_as_get_is(closed: World) -> None:
    assert (await closed.http.head("/v1/jobs")).status_code == 401
    headers = bearer(await new(scope="read"))
    assert (await closed.http.head("/v1/jobs", headers=headers)).status_code == 200


async def test_a_revoked_key_is_good_for_two_seconds_at_most(closed: World) -> None:
    key = await new()
    assert (await closed.http.get("/v1/jobs", headers=bearer(key))).status_code == 200
    await revoke_key(key_id(key) or "", utcnow())
    closed.app.runtime.clock.advance(2)
    assert (await closed.http.get("/v1/jobs", headers=bearer(key))).status_code == 401


async def test_webhooks_need_no_key_and_no_key_replaces_their_signature(closed: World) -> None:
    assert (await closed.deliver("bank", {"status": "x"})).status_code == 202
    headers = bearer(await new(scope="admin"))
    answer = await closed.http.post("/webhooks/bank", content=b"{}", headers=headers)
    assert answer.status_code == 401
    assert "www-authenticate" not in answer.headers


async def test_health_confides_in_good_keys_only(closed: World) -> None:
    """From elsewhere, that is: this machine needs no key to look."""
    app = closed.app
    app.runtime.catalogue.problems["broken"] = "its place and its reason"
    try:
        async with serving(app.asgi, proxy_headers=False) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{port}/readyz"
            async with httpx.AsyncClient() as http:
                far = {"Host": "flow.example.com"}
                assert "its reason" in (await http.get(url)).text
                hidden = await http.get(url, headers=far)
                assert hidden.json() == {
                    "status": "ok", "missing": [], "oldest_due_seconds": None,
                    "plugin_problems": {},
                }  # fmt: skip
                assert "reason" not in (await http.get(url, headers=far | bearer("af_x"))).text
                good = bearer(await new(scope="read"))
                assert "its reason" in (await http.get(url, headers=far | good)).text
    finally:
        del app.runtime.catalogue.problems["broken"]


async def test_the_openapi_page_says_that_keys_are_needed(closed: World) -> None:
    page = (await closed.http.get("/openapi.json")).json()
    jobs = page["paths"]["/v1/jobs"]
    assert jobs["get"]["security"] == [{"bearer": ["read"]}, {"header": ["read"]}]
    assert jobs["post"]["security"] == [{"bearer": ["write"]}, {"header": ["write"]}]
    assert page["paths"]["/healthz"]["get"]["security"] == []


async def test_the_openapi_page_says_that_none_are_needed(free: World) -> None:
    page = (await free.http.get("/openapi.json")).json()
    assert page["paths"]["/v1/jobs"]["get"]["security"][-1] == {}


# -- where none is required --------------------------------------------------------------------


async def test_a_key_that_nobody_asked_for_is_checked_all_the_same(free: World) -> None:
    key = await new("elsewhere")
    said = {"task": "acme.echo"}
    made = (await free.http.post("/v1/jobs", json=said, headers=bearer(key))).json()
    assert made["tenant"] == "elsewhere"
    assert (await free.http.get(f"/v1/jobs/{made['id']}")).status_code == 404
    assert (await free.submit("acme.echo"))["tenant"] == "default"
    answer = await free.http.get("/v1/jobs", headers=bearer(new_key()[1]))
    assert answer.status_code == 401
    for token in ("a.host.jwt", "sk-123"):  # of the application around us
        assert (await free.http.get("/v1/jobs", headers=bearer(token))).status_code == 200


async def test_a_page_of_another_site_may_use_a_key_it_was_given(free: World) -> None:
    headers = {"origin": "https://evil.example", "content-type": "text/plain"}
    body = b'{"task": "acme.echo"}'
    assert (await free.http.post("/v1/jobs", content=body, headers=headers)).status_code == 403
    headers |= bearer(await new())
    assert (await free.http.post("/v1/jobs", content=body, headers=headers)).status_code == 201


# -- the command line --------------------------------------------------------------------------


async def test_keys_are_made_and_revoked_beside_a_running_server(
    tmp_path: Path, database: str | None
) -> None:
    env = {"AGENTFLOW_DATABASE_URL": database or ""}

    async def keys(*args: str) -> Ran:
        where = ("--data", str(tmp_path / "data"))
        ran = await asyncio.to_thread(agentflow, "keys", *args, *where, env=env)
        assert ran.code == 0, ran.err
        return ran

    first = (await keys("create", "before the first start", "--json")).json
    async with world(tmp_path / "data", require_keys=True) as api:
        asked = ("--tenant", "shop", "--scope", "read", "--expires", "2")
        made = (await keys("create", "ci", *asked, "--json")).json
        for key in (first["key"], made["key"]):
            assert (await api.http.get("/v1/jobs", headers=bearer(key))).status_code == 200
        listed = await keys("list", "--json")
        assert made["key"].rpartition("_")[2] not in listed.out
        assert [k["id"] for k in listed.json["items"]] == [first["id"], made["id"]]
        one = (await keys("list", "--tenant", "shop", "--json")).json["items"]
        assert [(k["name"], k["scope"], k["state"]) for k in one] == [("ci", "read", "ok")]
        await keys("revoke", made["id"])
        await keys("revoke", made["key"])  # again, and by the whole key
        api.app.runtime.clock.advance(2)
        answer = await api.http.get("/v1/jobs", headers=bearer(made["key"]))
        assert answer.status_code == 401
    gone = agentflow("keys", "revoke", "nobody", "--data", str(tmp_path / "data"), env=env)
    assert (gone.code, gone.err) == (1, "There is no key nobody\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["x", "--scope", "root"], "--scope is one of read, write, admin"),
        (["x", "--tenant", "a/b"], "--tenant is"),
        (["x", "--tenant", ""], "--tenant is"),
        (["x\ny"], "NAME is"),
        (["x", "--expires", "0"], "--expires"),
    ],
)
async def test_a_key_that_does_not_fit_is_not_made(
    tmp_path: Path, args: list[str], said: str
) -> None:
    ran = agentflow("keys", "create", *args, "--data", str(tmp_path))
    assert ran.code == 2
    assert said in ran.err
    assert list(tmp_path.iterdir()) == []


# -- what browsers are told --------------------------------------------------------------------


async def test_every_answer_tells_browsers_what_not_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as api:
        url = "data:application/json,{}"
        job = await api.finished("acme.file", {"url": url, "media_type": "application/json"})
        file = job["result"]["artifacts"][0]["url"]
        answers = [
            await api.plain.get(path)
            for path in ("/v1/jobs", "/v1/jobs/nope", "/nope", "/healthz", "/openapi.json", file,
                         job["urls"]["events"])
        ]  # fmt: skip
        answers.append(await api.plain.put("/v1/jobs"))
        answers.append(await api.plain.head("/v1/jobs"))
        live = {"Accept": "text/event-stream"}
        answers.append(await api.plain.get(job["urls"]["events"], headers=live))
        monkeypatch.setattr(api.app.runtime.catalogue, "tasks", None)
        answers.append(await api.plain.get("/v1/tasks"))
        assert [a.status_code for a in answers] == [200, 404, 404] + [200] * 4 + [
            405, 200, 200, 500,
        ]  # fmt: skip
    for answer in answers:
        for name, value in SECURITY.items():
            assert answer.headers.get_list(name.decode()) == [value.decode()], answer.url
        kept = answer.headers.get("cache-control")
        assert (kept is None) == (answer.url.path == file), answer.url


async def test_a_route_may_say_otherwise_itself() -> None:
    from agentflow.web.guard import SecurityHeaders

    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Content-Security-Policy", b"default-src 'self'"), (b"x", b"y")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        sent.append(message)

    await SecurityHeaders(page)({"type": "http"}, None, send)  # type: ignore[arg-type]  # unused
    names = [name.lower() for name, _ in sent[0]["headers"]]
    assert names.count(b"content-security-policy") == 1
    assert set(SECURITY) <= set(names)


# -- what nobody gets to read ------------------------------------------------------------------

MARKER = "m4rk3r-of-the-input"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Everything that is logged, as `agentflow dev` does at DEBUG."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY}
    stream = io.StringIO()
    logs.configure("DEBUG", stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
    structlog.reset_defaults()


async def test_secrets_signatures_and_inputs_are_in_no_log_error_or_history(
    tmp_path: Path, written: io.StringIO
) -> None:
    seen: list[str] = []

    async def keep(response: httpx.Response) -> None:
        await response.aread()
        if response.status_code >= 400:
            seen.append(response.text)

    async with world(tmp_path, require_keys=True) as api:
        api.plain.event_hooks = {"response": [keep]}
        key, small = await new(), await new(scope="read")
        signatures = await everything_goes_wrong(api, key, small)
        rows = await history_of(api)
    log = written.getvalue()
    assert "Webhook refused" in log, "the log was caught"
    assert "API key refused" in log
    assert len(seen) > 6
    secrets = [k.rpartition("_")[2] for k in (key, small)]
    hidden = [MARKER, KEY, KEY.removeprefix("whsec_"), *signatures, *secrets]
    for text in (log, "\n".join(seen), *rows.values()):
        assert [h for h in hidden if h in text] == []
    assert rows["agentflow_history"].count("submitted") >= 2, "the rows were read"


async def everything_goes_wrong(api: World, key: str, small: str) -> list[str]:
    """Jobs and webhooks, good and bad; returns the signatures that were sent."""
    http, headers = api.plain, bearer(key)
    for said in (
        {"task": "acme.refuse", "input": {"password": MARKER}},
        {"task": "acme.refuse", "input": MARKER, "delay": 1000},
        {"task": "acme.draw", "input": {"name": MARKER, "times": MARKER}},
        {"task": "acme.draw", "input": {"name": MARKER, "odd": MARKER}},
        {"task": "acme.none", "input": MARKER},
        {"task": "acme.echo", "input": MARKER, "delay": -1},
    ):
        await http.post("/v1/jobs", json=said, headers=headers)
    await http.post("/v1/jobs", content=b'{"input": "' + MARKER.encode(), headers=headers)
    await http.post("/v1/jobs", json={"task": "acme.echo"}, headers=bearer(small))
    await http.get("/v1/jobs", headers=bearer(f"af_{key_id(key)}_{small.rpartition('_')[2]}"))
    await http.get("/v1/jobs", headers={"X-API-Key": small.rpartition("_")[2]})
    await api.app.runtime.writer.settled()
    body = b'{"status": "x", "id": "nobody"}'
    good = sign(KEY, "msg-1", utcnow(), body)
    bad = {**good, "webhook-signature": "v1,c2VjcmV0LXNpZ25hdHVyZS1vZi1ub2JvZHk="}
    for sent in (good, bad):
        await http.post("/webhooks/bank", content=body, headers=sent | headers)
    await api.app.runtime.writer.settled()
    signatures = [s["webhook-signature"] for s in (good, bad)]
    return [*signatures, *(s.removeprefix("v1,") for s in signatures)]


async def history_of(api: World) -> dict[str, str]:
    """Every row of our tables as text, without the columns that keep an input and a webhook."""
    kept = {"agentflow_jobs": {"input"}, "agentflow_inbox": {"body"}}
    tables = ("jobs", "attempts", "history", "inbox", "keys", "handler_runs", "tags", "parked")
    found = {}
    for table in (f"agentflow_{t}" for t in tables):
        _, rows = await get_connection("default").execute_query(f'SELECT * FROM "{table}"')
        shown = [{k: v for k, v in dict(r).items() if k not in kept.get(table, ())} for r in rows]
        found[table] = repr(shown)
    return found
