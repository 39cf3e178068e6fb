"""`http.get`, `http.request` and the tasks of a declared service, whole jobs on real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agentflow_http.simulator import ShopSimulator
from agentflow_http.simulator.shop import PNG
from support.declared import declared
from support.fakes import rows
from support.whole import Whole

from agentflow import InvalidInput
from agentflow.store import queries

KEY = "a-very-secret-key"
TASKS = ("shop.get", "shop.request", "shop.order", "http.get", "http.request")


class Shop(ShopSimulator):
    """Declared with some changes."""

    changes: dict[str, Any]

    def service(self) -> dict[str, Any]:
        return {**super().service(), **self.changes}


class World:
    def __init__(self, here: Whole, sim: ShopSimulator) -> None:
        self.here, self.sim = here, sim

    async def ended(self, task: str, **input: Any) -> dict[str, Any]:
        return await self.here.ends(task, input)

    async def refused(self, task: str, **input: Any) -> str:
        with pytest.raises(InvalidInput) as raised:
            await self.here.app.submit(task, input)
        return raised.value.message


@pytest.fixture
async def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    sim = Shop(key=KEY)
    sim.changes = getattr(request, "param", {})
    async with sim.serve():
        monkeypatch.setenv("AGENTFLOW_HTTP_PRIVATE", json.dumps([sim.url.removeprefix("http://")]))
        async with declared(tmp_path, monkeypatch, sim, hasty=TASKS) as here:
            yield World(here, sim)


def with_service(**changes: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("world", [changes], indirect=True, ids=["declared"])


# What is sent


async def test_a_request_says_what_the_input_says_and_who_we_are(world: World) -> None:
    job = await world.ended(
        "shop.request", method="PUT", path="/a%20b/c",
        query={"q": ["x", "y z"], "n": 1, "no": None}, headers={"X-Trace": "7"},
        json={"hen": [1, "ü"]}, output="/path",
    )  # fmt: skip
    assert (job["status"], job["result"]["output"]) == ("succeeded", "/a b/c")
    ((method, target, headers, body),) = world.sim.seen
    assert (method, target) == ("PUT", "/a%20b/c?q=x&q=y+z&n=1")
    assert (headers["x-trace"], headers["content-type"]) == ("7", "application/json")
    assert headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(body) == {"hen": [1, "ü"]}


async def test_forms_and_texts_are_sent_as_such(world: World) -> None:
    await world.ended("shop.request", path="/f", form={"a": "x y", "b": [1, True]})
    await world.ended("shop.request", path="/t", text="Grüße")
    (_, _, form_headers, form), (_, _, text_headers, text) = world.sim.seen
    assert (form, form_headers["content-type"]) == (
        b"a=x+y&b=1&b=true", "application/x-www-form-urlencoded",
    )  # fmt: skip
    assert (text.decode(), text_headers["content-type"]) == ("Grüße", "text/plain; charset=utf-8")


async def test_a_declared_task_sends_its_input(world: World) -> None:
    job = await world.ended("shop.order", customer="ada/../x", item="hen")
    order = job["result"]["output"]
    assert (order["item"], order["amount"], order["customer"]) == ("hen", 1, "ada/../x")
    assert world.sim.seen[0][1] == "/orders/ada%2F..%2Fx"


async def test_http_request_takes_a_service_s_name_for_its_credentials(world: World) -> None:
    url = f"{world.sim.url}/things?x=1"
    job = await world.ended("http.request", url=url, auth="shop", query={"y": 2}, json=[])
    assert job["result"]["output"]["query"] == [["x", "1"], ["y", "2"]]
    plain = await world.ended("http.get", url=url)
    assert plain["error"]["kind"] == "authentication", "without, nobody is said"
    assert "authorization" not in world.sim.seen[-1][2]


@with_service(auth={"kind": "basic", "username": "me", "password": KEY})
async def test_basic_credentials_are_sent_and_hidden(world: World) -> None:
    job = await world.ended("shop.get", path="/x")
    assert world.sim.seen[0][2]["authorization"].startswith("Basic ")
    assert job["status"] == "failed"


@with_service(auth={"kind": "query", "name": "api_key", "value": KEY})
async def test_a_key_may_go_into_the_query_and_is_cut_out_of_what_comes_back(world: World) -> None:
    job = await world.ended("shop.get", path="/x", query={"a": 1})
    assert job["result"]["output"]["query"] == [["a", "1"], ["api_key", "***"]]


@with_service(auth={"kind": "header", "name": "X-Api-Key", "value": KEY})
async def test_a_header_of_any_name_may_hold_the_key(world: World) -> None:
    job = await world.ended("shop.get", path="/x")
    assert job["result"]["output"]["headers"]["x-api-key"] == "***"


async def test_oauth_tokens_are_asked_for_once_and_anew_when_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Shop(key=KEY)
    async with sim.serve():
        sim.changes = {
            "auth": {
                "kind": "oauth2", "token_url": f"{sim.url}/oauth/token", "client_id": "me",
                "client_secret": KEY, "scope": "orders",
            }
        }  # fmt: skip
        async with declared(tmp_path, monkeypatch, sim, hasty=TASKS) as here:
            for _ in range(2):
                assert (await here.ends("shop.get", {"path": "/x"}))["status"] == "succeeded"
            assert sim.tokens == 1
            sim.tokens += 1  # the one in use is refused
            job = await here.ends("shop.get", {"path": "/x"})
            assert (job["status"], job["attempt"], sim.tokens) == ("succeeded", 2, 3)
            sim.key = "another"
            sim.tokens += 1
            job = await here.ends("shop.get", {"path": "/x"})
            assert (job["status"], job["error"]["kind"]) == ("failed", "authentication")


async def test_a_credential_that_is_not_set_is_said_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    sim = Shop(key=KEY)
    sim.changes = {"auth": {"kind": "bearer", "token": {"env": "SHOP_KEY"}}}
    async with sim.serve(), declared(tmp_path, monkeypatch, sim) as here:
        job = await here.ends("shop.get", {"path": "/x"})
        assert job["error"]["kind"] == "authentication"
        assert "service shop" in job["error"]["message"]
        assert sim.seen == []


# What comes back


async def test_text_is_text_and_bytes_are_a_file(world: World) -> None:
    text = await world.ended("shop.get", path="/answer/latin")
    assert text["result"]["text"] == "Grüße"
    file = await world.ended("shop.get", path="/answer/png")
    (kept,) = file["result"]["artifacts"]
    assert (kept["status"], kept["media_type"], kept["size"]) == ("stored", "image/png", len(PNG))
    empty = await world.ended("shop.request", path="/answer/empty")
    assert empty["result"]["output"] == {"status": 204}
    head = await world.ended("shop.get", method="HEAD", path="/answer/png")
    assert (head["status"], head["result"]["artifacts"]) == ("succeeded", [])


async def test_what_is_expected_and_does_not_come_is_an_error(world: World) -> None:
    for input in (
        {"path": "/answer/text", "expect": "json"},
        {"path": "/x", "output": "/no/such/place"},
    ):
        job = await world.ended("shop.get", **input)
        assert job["error"]["kind"] == "provider_error", input
    broken = await world.ended("shop.get", path="/answer/broken")
    assert broken["result"]["text"] == "{"


@with_service(max_response=100_000)
@pytest.mark.parametrize("task", ["shop.get", "shop.request"])
async def test_an_answer_without_end_is_cut_off(world: World, task: str) -> None:
    job = await world.ended(task, path="/answer/endless")
    assert (job["error"]["kind"], job["attempt"]) == ("unstorable", 1)


async def test_redirects_are_not_followed(world: World) -> None:
    job = await world.ended("shop.get", path="/answer/redirect")
    assert job["error"]["kind"] == "provider_error"
    assert "png" not in world.sim.stats.counts


# What goes wrong

ERRORS = {
    "400": "invalid_input", "401": "authentication", "402": "quota_exceeded", "403": "permission",
    "404": "invalid_input", "410": "result_lost", "422": "content_rejected",
}  # fmt: skip


@with_service(errors={"410": "result_lost", "422": "content_rejected"}, error_message="/code")
@pytest.mark.parametrize("status", ERRORS)
async def test_an_error_has_its_kind_and_its_sentence(world: World, status: str) -> None:
    job = await world.ended("shop.request", path=f"/answer/{status}")
    assert (job["error"]["kind"], job["attempt"]) == (ERRORS[status], 1)
    assert job["error"]["message"] == f"HTTP {status}. E1"


@pytest.mark.parametrize("status", ["500", "502", "408", "429-0", "503-0"])
async def test_an_unrepeatable_call_is_repeated_only_if_it_surely_did_nothing(
    world: World, status: str
) -> None:
    surely = status in ("429-0", "503-0")
    read = await world.ended("shop.get", path=f"/answer/{status}")
    call = await world.ended("shop.request", path=f"/answer/{status}")
    assert read["attempt"] == 3
    assert call["attempt"] == (3 if surely else 1)
    assert (call["error"]["kind"] == "outcome_unknown") is not surely
    assert world.sim.stats.counts[status] == (6 if surely else 4)


@with_service(timeout=0.6)
@pytest.mark.parametrize(
    ("task", "kind"), [("shop.get", "timeout"), ("shop.request", "outcome_unknown")]
)
async def test_an_answer_that_does_not_come(world: World, task: str, kind: str) -> None:
    job = await world.ended(task, path="/answer/late")
    assert job["error"]["kind"] == kind


@with_service(idempotency_header="Idempotency-Key")
@pytest.mark.parametrize("fault", ["reset", "error_after"])
async def test_with_an_idempotency_key_an_unknown_outcome_is_asked_again(
    world: World, fault: str
) -> None:
    world.sim.faults.update({fault: 1})
    job = await world.ended("shop.order", customer="ada", item="hen")
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert world.sim.stats.created == {job["id"]: 1}, "made once"


@pytest.mark.parametrize("fault", ["reset", "error_after"])
async def test_without_one_it_is_unknown(world: World, fault: str) -> None:
    world.sim.faults.update({fault: 1})
    job = await world.ended("shop.order", customer="ada", item="hen")
    assert (job["error"]["kind"], job["attempt"]) == ("outcome_unknown", 1)
    assert world.sim.stats.created == {"hen": 1}


# What is not called


@pytest.mark.parametrize(
    ("input", "why"),
    [
        ({"path": "x"}, "begins with /"),
        ({"path": "/a/../b"}, "dotted"),
        ({"path": "/a/%2e%2e/b"}, "dotted"),
        ({"path": "//evil.test/"}, "empty"),
        ({"path": "/a?b=c"}, "path"),
        ({"path": "/a#b"}, "path"),
        ({"path": "/a\\b"}, "path"),
        ({"path": "/secret/plans"}, "not among"),
        ({"path": "/a", "method": "PATCH"}, "not among"),
        ({"path": "/a", "headers": {"Authorization": "Bearer x"}}, "nothing secret"),
        ({"path": "/a", "headers": {"X-Api-Key": "x"}}, "nothing secret"),
        ({"path": "/a", "headers": {"Host": "evil.test"}}, "not for callers"),
        ({"path": "/a", "headers": {"X-A": "b\r\nX-C: d"}}, "visible ASCII"),
        ({"path": "/a", "json": {}, "text": ""}, "one of"),
        ({"path": "/a", "method": "GET", "json": {}}, "no body"),
        ({"path": "/a", "output": "no"}, "pointer"),
    ],
    ids=str,
)
@with_service(methods=["GET", "POST"], paths=["/a*", "/b/*/c"])
async def test_what_a_service_does_not_admit_is_refused_at_the_submit(
    world: World, input: dict[str, Any], why: str
) -> None:
    assert why in await world.refused("shop.request", **input)
    assert (await world.ended("shop.get", path="/b/x/y/c"))["status"] == "succeeded"


@pytest.mark.parametrize("value", [None, "", "..", ".", {}, True])
async def test_a_part_of_a_path_is_a_text_or_a_number(world: World, value: Any) -> None:
    assert "customer" in await world.refused("shop.order", customer=value, item="x")
    assert world.sim.seen == []


@pytest.mark.parametrize(
    ("url", "auth", "kind"),
    [
        ("https://api.example.com/", None, "permission"),  # nobody allowed it
        ("http://127.0.0.1:1/", None, "permission"),
        ("http://127.0.0.1:1/", "shop", "permission"),  # not the shop's
        ("https://{shop}/", "shop", "permission"),
        ("http://evil.test/?{shop}", "shop", "permission"),
        ("http://{shop}/a/../b", "shop", "permission"),
        ("http://{shop}/", "bank", "invalid_input"),
    ],
)
async def test_credentials_and_calls_go_only_where_they_belong(
    world: World, url: str, auth: str | None, kind: str
) -> None:
    there = url.replace("{shop}", world.sim.url.removeprefix("http://"))
    job = await world.ended("http.request", url=there, **({"auth": auth} if auth else {}))
    assert (job["error"]["kind"], job["attempt"]) == (kind, 1)
    assert world.sim.seen == []


@pytest.mark.parametrize(
    "url",
    ["ftp://a/b", "http://", "https://me:pw@host/", "https://host/#f", "https://h:99999/", "x"],
)
async def test_what_is_no_url_to_call_is_refused(world: World, url: str) -> None:
    assert "url" in await world.refused("http.get", url=url)


async def test_an_allowed_host_with_a_private_address_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_HTTP_HOSTS", '["*"]')
    async with ShopSimulator(key=KEY).serve() as sim, declared(tmp_path, monkeypatch) as here:
        for url in (sim.url, "http://localhost:1/", "http://2130706433/", "http://[::1]/"):
            job = await here.ends("http.get", {"url": url})
            assert (job["error"]["kind"], job["attempt"]) == ("permission", 1), url
        assert sim.seen == []


async def test_no_credential_is_in_what_is_kept_or_said(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = ("/x", "/answer/400", "/answer/500", "/answer/401")
    jobs = [await world.ended("shop.get", path=path) for path in paths]
    assert jobs[0]["result"]["output"]["headers"]["authorization"] == "Bearer ***"
    assert "told 400 and ***" in jobs[1]["error"]["message"]
    kept = [await queries.history("default", job["id"]) for job in jobs]
    kept.append(await rows("SELECT * FROM agentflow_jobs"))
    assert KEY not in json.dumps([jobs, kept], default=str) + "".join(capfd.readouterr())


# Isolation


async def test_a_service_declared_wrong_is_reported_and_the_rest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ShopSimulator(key=KEY).serve() as sim:
        wrong = {"base_url": "ftp://x", "auth": {"kind": "bearer", "token": KEY}}
        taken = {"http": sim.service(), "bad": wrong, "worse": {}, "shop": sim.service()}
        monkeypatch.setenv("AGENTFLOW_HTTP_SERVICES", json.dumps(taken))
        async with declared(tmp_path, monkeypatch) as here:
            assert (await here.ends("shop.get", {"path": "/x"}))["status"] == "succeeded"
            problem = here.app.runtime.catalogue.problems["http"]
            for said in ("bad: base_url", "worse: base_url", "provider http is there already"):
                assert said in problem
            assert KEY not in problem
