"""Webhooks: verified as they came, stored before the yes, matched whenever they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
from support.patience import PATIENCE
from support.web import KEY, World

from agentflow.types import utcnow
from agentflow.webhooks.signatures import new_secret, sign

pytestmark = pytest.mark.asyncio(loop_scope="module")


def signed(body: bytes, id: str, **changes: str | None) -> dict[str, str]:
    headers = {**sign(KEY, id, utcnow(), body), **changes}
    return {k: v for k, v in headers.items() if v is not None}


async def told(api: World, path: str, said: Any, **options: Any) -> Any:
    """The delivery as it is shown once it was read."""
    answer = await api.deliver(path, said, **options)
    assert answer.status_code == 202, answer.text
    return await api.read(answer.json()["id"])


# -- who may say something ---------------------------------------------------------------------


async def test_a_signed_delivery_is_stored_and_applied(api: World) -> None:
    job = await api.waiting()
    body = b'{ "id": "%s",\r\n\t"status" : "done", "output": {"n": 1.50} }\n' % (
        job["external_id"].encode()
    )
    shown = await told(api, f"acme/{await api.token(job['id'])}", body)
    assert shown["body"].encode() == body, "verbatim"
    assert (shown["status"], shown["job_id"], shown["type"]) == ("applied", job["id"], "done")
    job = await api.job(job["id"])
    assert (job["status"], job["result"]["output"]) == ("succeeded", {"n": 1.5})


FORGED: dict[str, dict[str, str | bytes | None]] = {
    "no signature": {"webhook-signature": None},
    "no id": {"webhook-id": None},
    "no timestamp": {"webhook-timestamp": None},
    "empty signature": {"webhook-signature": ""},
    "wrong version": {"webhook-signature": "v2,AAAA"},
    "wrong bytes": {"webhook-signature": "v1,AAAA"},
    "no base64": {"webhook-signature": "v1,%%%%"},
    "many signatures": {"webhook-signature": " ".join(["v1,AAAA"] * 1000)},
    "another id": {"webhook-id": "msg-other"},
    "id with a dot": {"webhook-id": "a.b"},
    "long id": {"webhook-id": "m" * 5000},
    "id beyond ASCII": {"webhook-id": "mü".encode("latin-1")},
    "id of bytes": {"webhook-id": b"\xff\xfe\x80"},
    "another time": {"webhook-timestamp": "1700000000"},
    "time as a fraction": {"webhook-timestamp": "1795479473.5"},
    "time in other digits": {"webhook-timestamp": "٣٣٣".encode()},
    "time of ages": {"webhook-timestamp": "9" * 400},
    "no time": {"webhook-timestamp": "soon"},
    "another key": dict(sign(new_secret(), "msg-key", utcnow(), b"{}")),
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED.keys())
async def test_what_is_not_signed_is_a_401_and_not_stored(api: World, changes: Any) -> None:
    before = await api.count("agentflow_inbox")
    headers = signed(b"{}", api.name("msg"), **changes)
    answer = await api.http.post("/webhooks/acme", content=b"{}", headers=headers)
    assert answer.status_code == 401
    assert await api.count("agentflow_inbox") == before


@pytest.mark.parametrize("seconds", [-310, 310, -1e6])
async def test_the_time_of_signing_is_now_or_nearly(api: World, seconds: float) -> None:
    headers = sign(KEY, api.name("msg"), utcnow() + timedelta(seconds=seconds), b"{}")
    answer = await api.http.post("/webhooks/acme", content=b"{}", headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize("change", [b"", b"{}\n", b" {}", b'{"a":1}', b"\xef\xbb\xbf{}"])
async def test_the_signature_covers_every_byte(api: World, change: bytes) -> None:
    headers = signed(b"{}", api.name("msg"))
    answer = await api.http.post("/webhooks/acme", content=change, headers=headers)
    assert answer.status_code == 401


async def test_a_signature_is_proof_enough_wherever_it_was_sent_from(api: World) -> None:
    headers = {"Origin": "https://acme.test", "Content-Type": "text/plain"}
    answer = await api.deliver("acme", {"status": "x"}, headers=headers)
    assert answer.status_code == 202


async def test_a_repeated_header_is_refused(api: World) -> None:
    headers = list(signed(b"{}", api.name("msg")).items())
    for header in headers:
        answer = await api.http.post("/webhooks/acme", content=b"{}", headers=[*headers, header])
        assert answer.status_code == 401


async def test_a_scheme_that_breaks_its_contract_lets_nobody_in(api: World) -> None:
    answer = await api.http.post("/webhooks/rude", content=b"{}")
    assert answer.status_code == 401
    assert "x-signature" not in answer.text


@pytest.mark.parametrize("name", ["unset", "weak"])
async def test_without_a_good_key_the_route_is_shut_and_says_why(api: World, name: str) -> None:
    body = b"{}"
    for path in (f"/webhooks/{name}", f"/webhooks/{name}/{'t' * 32}"):
        answer = await api.http.post(path, content=body, headers=signed(body, api.name("msg")))
        assert answer.status_code == 503
        assert "key" in answer.json()["detail"]
        assert "MTIz" not in answer.text, "the reason is not the key"
        assert int(answer.headers["retry-after"]) > 0
    listed = (await api.http.get("/v1/providers")).json()["items"]
    shown = {p["name"]: p for p in listed}
    assert shown[name]["webhooks_ready"] is False
    assert shown[name]["webhook_problem"] in answer.json()["detail"]
    assert shown["acme"]["webhook_problem"] is None
    assert (await api.http.get("/readyz")).status_code == 200, "the rest works"


@pytest.mark.parametrize("path", ["mute", "nobody", "mute/" + "t" * 32, "%00", "..%2fv1", "ACME"])
async def test_nobody_is_listened_to_who_takes_no_webhooks(api: World, path: str) -> None:
    headers = signed(b"{}", api.name("msg"))
    answer = await api.http.post(f"/webhooks/{path}", content=b"{}", headers=headers)
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "path", ["/webhooks/acme/", "/webhooks/acme/x/", "/webhooks/", "//webhooks/acme"]
)
async def test_a_webhook_is_never_redirected(api: World, path: str) -> None:
    headers = signed(b"{}", api.name("msg"))
    answer = await api.http.post(f"{api.url}{path}", content=b"{}", headers=headers)
    assert answer.status_code == 404


# -- how much ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("acme", 1 << 20), ("tiny", 1000)])
async def test_a_provider_has_its_limit(api: World, name: str, limit: int) -> None:
    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    for size, status in ((limit, 202), (limit + 1, 413)):
        for chunked in (False, True):
            body = orjson.dumps({"status": "x", "pad": ""})
            body = body.replace(b'"pad":""', b'"pad":"%s"' % (b"x" * (size - len(body))))
            assert len(body) == size
            answer = await api.http.post(
                f"/webhooks/{name}",
                content=pieces(body) if chunked else body,
                headers=signed(body, api.name("msg")),
            )
            assert answer.status_code == status


async def test_a_body_without_end_is_cut_off(api: World) -> None:
    head = b"POST /webhooks/tiny HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    said = await api.raw(head + b"400\r\n" + b"x" * 1024 + b"\r\n", until=b"}")
    assert b" 413 " in said.split(b"\r\n")[0]
    assert b"application/problem+json" in said


# -- what it says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"{", b"\xff\xfe\x00", b"null", b"5", b'"text"', b"{}", b"[1]", b"[[]]",
     b"[" * 3000 + b"]" * 3000, b'{"status": {"deep": 1}}', b"NaN", b'{"id": "\\ud800"}'],
)  # fmt: skip
async def test_what_the_parser_cannot_read_is_kept_and_shown(api: World, body: bytes) -> None:
    shown = await told(api, "acme", body)
    assert shown["body"] == body.decode(errors="replace")
    assert shown["status"] in {"failed", "ignored"}
    if shown["status"] == "failed":
        assert shown["error"]
    assert (await api.finished())["status"] == "succeeded", "nobody else is stopped"


@pytest.mark.parametrize("id", [5, ["x"], {"x": 1}, "", "x" * 256, True])
async def test_an_external_id_that_is_none_stops_nobody(api: World, id: Any) -> None:
    job = await api.waiting()
    for said in ({"id": id, "status": "done"}, [{"id": id, "status": "working"}]):
        shown = await told(api, f"acme/{await api.token(job['id'])}", said)
        assert (shown["status"], shown["reason"]) == ("failed", "error")
    assert (await api.job(job["id"]))["status"] == "waiting"
    await told(api, "acme", {"id": job["external_id"], "status": "done"})
    assert (await api.job(job["id"]))["status"] == "succeeded"


@pytest.mark.parametrize(
    "said",
    [
        {"status": "working", "fraction": "most"},
        {"status": "working", "fraction": [1]},
        {"status": "working", "message": {"a": 1}},
        {"status": "error", "message": ["no"]},
    ],
)
async def test_a_fact_of_wrong_types_stops_nobody(api: World, said: Any) -> None:
    job = await api.waiting()
    path = f"acme/{await api.token(job['id'])}"
    shown = await told(api, path, {"id": job["external_id"], **said})
    assert shown["status"] == "failed"
    await told(api, path, {"id": job["external_id"], "status": "done"})
    assert (await api.job(job["id"]))["status"] == "succeeded"


async def test_text_that_databases_refuse_is_cleaned_as_a_workers_is(api: World) -> None:
    job = await api.waiting()
    output = {"a": "nul \0 and ünï 漢字 🎉", "n": 1e308}
    said = {"id": job["external_id"], "status": "done", "output": output}
    await told(api, f"acme/{await api.token(job['id'])}", said)
    kept = {"a": "nul \ufffd and ünï 漢字 🎉", "n": 1e308}
    assert (await api.job(job["id"]))["result"]["output"] == kept


async def test_the_headers_kept_hold_no_secret_and_nothing_absurd(api: World) -> None:
    headers = {
        "Authorization": "Bearer sesame", "Cookie": "sesame", "X-Api-Key": "sesame",
        "X-Acme-Signature": "sesame", "X-Auth-Token": "sesame", "Proxy-Authorization": "sesame",
        "X-Event": "made", "X-Long": "x" * 5000, "X-Odd": b"\xff\xfe",
        **{f"X-Many-{i}": "1" for i in range(90)},
    }  # fmt: skip
    shown = await told(api, "acme", {"status": "x"}, headers=headers)
    assert shown["headers"]["x-event"] == "made"
    assert "sesame" not in orjson.dumps(shown).decode()
    assert "webhook-signature" not in shown["headers"]
    assert "x-long" not in shown["headers"]
    assert len(shown["headers"]) <= 40


# -- once --------------------------------------------------------------------------------------


async def test_a_delivery_sent_again_is_a_duplicate_of_the_first(api: World) -> None:
    job = await api.waiting()
    path, id = f"acme/{await api.token(job['id'])}", api.name("msg")
    said = {"id": job["external_id"], "status": "working", "fraction": 0.5}
    first = await api.deliver(path, said, id=id)
    await api.read(first.json()["id"])
    again = await api.deliver(path, said, id=id)
    assert (first.json()["status"], again.json()["status"]) == ("stored", "duplicate")
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]


async def test_a_hundred_copies_at_once_are_stored_once(api: World) -> None:
    job = await api.waiting()
    path, id = f"acme/{await api.token(job['id'])}", api.name("msg")
    said = {"id": job["external_id"], "status": "working", "fraction": 0.5}
    before = await api.count("agentflow_inbox")
    answers = await asyncio.gather(*(api.deliver(path, said, id=id) for _ in range(100)))
    assert {a.status_code for a in answers} == {202}
    assert sorted(a.json()["status"] for a in answers) == ["duplicate"] * 99 + ["stored"]
    assert len({a.json()["id"] for a in answers}) == 1
    assert await api.count("agentflow_inbox") == before + 1


async def test_the_same_id_of_another_provider_is_another_delivery(api: World) -> None:
    id = api.name("msg")
    answers = [await api.deliver(p, {"status": "x"}, id=id) for p in ("acme", "bank")]
    assert [a.json()["status"] for a in answers] == ["stored", "stored"]


async def test_the_id_tells_deliveries_apart_not_what_they_say(api: World) -> None:
    one, two = api.name("msg"), api.name("msg")
    first = (await api.deliver("acme", {"status": "x"}, id=one)).json()
    changed = (await api.deliver("acme", {"status": "y"}, id=one)).json()
    same = (await api.deliver("acme", {"status": "x"}, id=two)).json()
    assert changed == {"id": first["id"], "status": "duplicate"}
    assert (same["status"], same["id"] != first["id"]) == ("stored", True)
    shown = await api.read(first["id"])
    assert (shown["delivery_id"], shown["body"]) == (one, '{"status":"x"}')


async def test_the_same_news_under_another_id_changes_nothing(api: World) -> None:
    job = await api.waiting()
    path = f"acme/{await api.token(job['id'])}"
    said = {"id": job["external_id"], "status": "done", "output": 1}
    assert (await told(api, path, said))["reason"] == "succeeded"
    before = await api.job(job["id"])
    again = await told(api, path, {**said, "output": 2})
    assert (again["status"], again["reason"]) == ("applied", "final")
    after = await api.job(job["id"])
    assert {**after, "version": 0} == {**before, "version": 0}


async def test_old_news_and_contradictions_change_nothing(api: World) -> None:
    job = await api.waiting()
    path, id = f"acme/{await api.token(job['id'])}", job["external_id"]
    await told(api, path, {"id": id, "status": "working", "fraction": 0.9})
    await told(api, path, {"id": id, "status": "working", "fraction": 0.2})
    assert (await api.job(job["id"]))["progress"]["fraction"] == 0.9
    await told(api, path, {"id": id, "status": "done", "output": "first"})
    await told(api, path, {"id": id, "status": "error", "message": "second"})
    await told(api, path, {"id": id, "status": "working", "fraction": 1.0})
    ended = await api.job(job["id"])
    assert (ended["status"], ended["result"]["output"]) == ("succeeded", "first")


# -- whose -------------------------------------------------------------------------------------


async def test_one_delivery_may_speak_of_many_jobs(api: World) -> None:
    jobs = [await api.waiting(task="bank.draw") for _ in range(3)]
    said = [{"id": j["external_id"], "status": "done", "output": i} for i, j in enumerate(jobs)]
    assert (await told(api, "bank", said))["status"] == "applied"
    ended = [await api.job(j["id"]) for j in jobs]
    assert [j["result"]["output"] for j in ended] == [0, 1, 2]


async def test_news_of_nobody_is_parked(api: World) -> None:
    shown = await told(api, "acme/" + "A" * 32, {"id": api.name("ghost"), "status": "done"})
    assert (shown["status"], shown["reason"]) == ("parked", "no_such_attempt")
    nobody = await told(api, "acme/" + "A" * 32, {"status": "done"})
    assert (nobody["status"], nobody["reason"]) == ("ignored", "no_such_attempt")
    nothing = await told(api, "acme", [])
    assert (nothing["status"], nothing["reason"]) == ("ignored", "unknown")


@pytest.mark.parametrize("token", ["x", "%00", "%ff", "..", "%2e%2e", "a" * 500, "{token}", "'"])
async def test_a_token_that_is_none_routes_by_the_external_id(api: World, token: str) -> None:
    job = await api.waiting()
    said = {"id": job["external_id"], "status": "done"}
    body = orjson.dumps(said)
    url = f"{api.url}/webhooks/acme/{token}".replace("/..", "/%2e%2e")
    headers = signed(body, api.name("msg"))
    answer = await api.http.post(url, content=body, headers=headers)
    assert answer.status_code == 202
    await api.until(job["id"], "succeeded")


async def test_a_token_of_another_provider_routes_nowhere(api: World) -> None:
    job = await api.waiting(task="bank.draw")
    said = {"id": api.name("ghost"), "status": "done"}
    shown = await told(api, f"acme/{await api.token(job['id'])}", said)
    assert shown["status"] == "parked"
    shown = await told(api, f"acme/{await api.token(job['id'])}", {"status": "done"})
    assert shown["status"] == "ignored"
    assert (await api.job(job["id"]))["version"] == job["version"]


async def test_a_token_and_an_id_that_disagree_change_nothing(api: World) -> None:
    one, two = await api.waiting(), await api.waiting()
    said = {"id": two["external_id"], "status": "done"}
    shown = await told(api, f"acme/{await api.token(one['id'])}", said)
    assert shown["reason"] == "other_external_id"
    assert [(await api.job(j["id"]))["status"] for j in (one, two)] == ["waiting", "waiting"]


async def started(api: World, task: str) -> tuple[Any, str]:
    """A job whose call is under way, and the name it waits behind."""
    name = api.name("early")
    api.fakes.gates[name] = asyncio.Event()
    job = await api.submit(task, {"name": name})
    return await api.until(job["id"], "running"), name


async def test_an_early_webhook_is_parked_and_found(api: World) -> None:
    job, name = await started(api, "bank.draw")
    shown = await told(api, "bank", {"id": name, "status": "done", "output": 7})
    assert (shown["status"], shown["job_id"]) == ("parked", None)
    assert (await api.job(job["id"]))["status"] == "running"
    api.fakes.gates[name].set()
    ended = await api.until(job["id"], "succeeded")
    assert ended["result"]["output"] == 7
    shown = await api.read(shown["id"])
    assert (shown["status"], shown["job_id"]) == ("applied", job["id"])


async def test_an_early_webhook_with_a_token_needs_no_parking(api: World) -> None:
    job, name = await started(api, "acme.draw")
    said = {"id": name, "status": "done", "output": 7}
    shown = await told(api, f"acme/{await api.token(job['id'])}", said)
    assert shown["status"] == "applied"
    ended = await api.until(job["id"], "succeeded")
    assert (ended["external_id"], ended["result"]["output"]) == (name, 7)
    api.fakes.gates[name].set()
    async with asyncio.timeout(PATIENCE):
        while (await api.job(job["id"]))["version"] == ended["version"]:
            await asyncio.sleep(0.005)
    assert (await api.job(job["id"]))["status"] == "succeeded"


async def test_a_webhook_read_together_with_the_acceptance_is_found(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, name = await started(api, "bank.draw")
    monkeypatch.setattr(api.app.runtime.intake._doorbell, "inbox", lambda: None)
    answer = await api.deliver("bank", {"id": name, "status": "done", "output": 7})
    shown = (await api.http.get(f"/v1/deliveries/{answer.json()['id']}")).json()
    assert shown["status"] == "received"
    api.fakes.gates[name].set()
    assert (await api.until(job["id"], "succeeded"))["result"]["output"] == 7
    assert (await api.read(answer.json()["id"]))["status"] == "applied"


async def test_parts_of_a_delivery_find_their_jobs_one_by_one(api: World) -> None:
    (one, first), (two, second) = await started(api, "bank.draw"), await started(api, "bank.draw")
    said = [{"id": first, "status": "done"}, {"id": second, "status": "done"}]
    assert (await told(api, "bank", said))["status"] == "parked"
    for job, name in ((two, second), (one, first)):
        api.fakes.gates[name].set()
        await api.until(job["id"], "succeeded")


# -- again -------------------------------------------------------------------------------------


async def test_a_replay_reads_with_todays_code(api: World) -> None:
    job = await api.waiting()
    said = {"id": job["external_id"], "status": "done", "output": 1}
    api.fakes.broken_parser = True
    try:
        shown = await told(api, f"acme/{await api.token(job['id'])}", said)
        path = f"/v1/deliveries/{shown['id']}/replay"
        assert shown["status"] == "failed"
        assert "broken today" in shown["error"]
        assert (await api.http.post(path)).status_code == 202
        assert (await api.read(shown["id"]))["status"] == "failed"
    finally:
        api.fakes.broken_parser = False
    answer = await api.http.post(path)
    assert (answer.status_code, answer.json()["status"]) == (202, "applied")
    shown = await api.read(shown["id"])
    assert (shown["status"], shown["error"]) == ("applied", None)
    assert (await api.job(job["id"]))["result"]["output"] == 1


async def test_replays_at_once_change_nothing_more(api: World) -> None:
    job = await api.waiting()
    said = {"id": job["external_id"], "status": "done", "output": 1}
    shown = await told(api, f"acme/{await api.token(job['id'])}", said)
    path = f"/v1/deliveries/{shown['id']}/replay"
    answers = await asyncio.gather(*(api.http.post(path) for _ in range(10)))
    assert {a.status_code for a in answers} == {202}
    assert (await api.job(job["id"]))["result"]["output"] == 1
    assert (await api.read(shown["id"]))["body"] == shown["body"]


async def test_commands_are_no_deliveries(api: World) -> None:
    shown = await told(api, "acme", {"status": "x"})
    command = (await api.http.post(f"/v1/deliveries/{shown['id']}/replay")).json()["id"]
    for path in (f"/v1/deliveries/{command}", f"/v1/deliveries/{command}/replay"):
        method = "POST" if path.endswith("replay") else "GET"
        assert (await api.http.request(method, path)).status_code == 404
    listed = (await api.http.get("/v1/deliveries?limit=200")).json()["items"]
    assert command not in {d["id"] for d in listed}


async def test_deliveries_are_listed_newest_first_in_pages(api: World) -> None:
    made = [(await told(api, "tiny", {"status": "x", "n": i}))["id"] for i in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"provider": "tiny", "limit": 2}
    for _ in range(20):
        page = (await api.http.get("/v1/deliveries", params=query)).json()
        seen += [d["id"] for d in page["items"]]
        query["cursor"] = page["next_cursor"]
        if page["next_cursor"] is None:
            break
    assert seen[:5] == made[::-1]
    assert len(seen) == len(set(seen))
    parked = (await api.http.get("/v1/deliveries?status=parked&limit=200")).json()["items"]
    assert parked
    assert {d["status"] for d in parked} == {"parked"}
