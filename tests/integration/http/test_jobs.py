"""Looking at jobs, waiting for them, ending them, doing them again."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
from support.patience import PATIENCE
from support.web import MAX_WAIT, World

from agentflow.types import new_job_id

pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD_IDS = [
    "nope", "job_", "job_0", "job_" + "0" * 32, "JOB_" + "0" * 32, "*", "%", "_", "'", "%27--",
    "%00", "%0d%0aX-Evil:%201", "%ff%fe", "%ed%a0%80", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..", "a" * 3000, "%F0%9F%8E%89", "1e9", "null", "{id}",
]  # fmt: skip


@pytest.mark.parametrize("id", ODD_IDS)
async def test_an_id_that_is_none_is_not_found(api: World, id: str) -> None:
    for place in ("jobs", "artifacts", "deliveries"):
        answer = await api.http.get(f"/v1/{place}/{id}")
        assert answer.status_code == 404
        assert not [name for name in answer.headers if "evil" in name]


@pytest.mark.parametrize(
    "id",
    ["nope", "%00", "%ff", "'", str(new_job_id())],
    ids=["word", "nul", "no_text", "quote", "unknown"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs/{}/cancel"),
        ("POST", "/v1/jobs/{}/retry"),
        ("GET", "/v1/jobs/{}/events"),
        ("POST", "/v1/deliveries/{}/replay"),
        ("POST", "/v1/handler-runs/{}/retry"),
    ],
)
async def test_nothing_is_done_to_what_is_not_there(
    api: World, method: str, path: str, id: str
) -> None:
    before = await api.count("agentflow_inbox")
    answer = await api.http.request(method, path.format(id))
    assert answer.status_code == 404
    assert await api.count("agentflow_inbox") == before


# -- lists -------------------------------------------------------------------------------------


async def test_pages_hold_every_job_once_newest_first(api: World) -> None:
    tag = api.name("tag")
    made = [(await api.submit("acme.echo", i, tags=[tag]))["id"] for i in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"tag": tag, "limit": 3}
    for _ in range(4):
        page = (await api.http.get("/v1/jobs", params=query)).json()
        seen += [job["id"] for job in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
        await api.submit("acme.echo", "newer", tags=[tag])  # moves no page
    assert seen == made[::-1]


async def test_a_full_last_page_says_that_it_is_the_last(api: World) -> None:
    tag = api.name("tag")
    for i in range(3):
        await api.submit("acme.echo", i, tags=[tag])
    page = (await api.http.get("/v1/jobs", params={"tag": tag, "limit": 3})).json()
    assert (len(page["items"]), page["next_cursor"]) == (3, None)


async def test_filters_narrow_the_list_together(api: World) -> None:
    tag, entity = api.name("tag"), f"shot:{api.name()}"
    one = await api.waiting(tags=[tag, "x"], entity=entity)
    two = await api.finished("acme.echo")
    three = await api.submit("bank.echo", 1, tags=[tag])
    await api.until(three["id"], "succeeded")

    async def ids(**query: Any) -> set[str]:
        page = (await api.http.get("/v1/jobs", params={"limit": 200, **query})).json()
        return {job["id"] for job in page["items"]}

    assert await ids(tag=tag) == {one["id"], three["id"]}
    assert await ids(entity=entity) == {one["id"]}
    assert await ids(tag=tag, status="waiting") == {one["id"]}
    assert await ids(tag=tag, task="bank.echo") == {three["id"]}
    assert two["id"] in await ids(status="succeeded", task="acme.echo")
    assert await ids(tag="x", entity="shot:other") == set()


async def test_since_is_an_instant_in_any_zone(api: World) -> None:
    tag = api.name("tag")
    first = await api.submit("acme.echo", 1, tags=[tag])
    second = await api.submit("acme.echo", 2, tags=[tag])
    at = datetime.fromisoformat(second["created_at"])
    for hours in (-11, 0, 14):
        since = at.astimezone(timezone(timedelta(hours=hours))).isoformat()
        page = (await api.http.get("/v1/jobs", params={"tag": tag, "since": since})).json()
        assert [job["id"] for job in page["items"]] == [second["id"]]
    page = (
        await api.http.get("/v1/jobs", params={"tag": tag, "since": first["created_at"]})
    ).json()
    assert len(page["items"]) == 2


BAD_QUERIES = [
    "limit=0", "limit=201", "limit=-1", "limit=many", "limit=", "limit=1&limit=2", "limit=1e400",
    "limit=99999999999999999999999", "cursor=", "cursor=zzz", "cursor=job_1", "cursor=dlv_1",
    "cursor=job_" + "g" * 32, "cursor=%00", "status=", "status=done", "status=SUCCEEDED",
    "status=failed&status=queued", "since=", "since=yesterday", "since=1795479473",
    "since=2026-11-24", "since=2026-11-24T00:00:00", "since=2026-11-24T00:00:00+00:00",
    "since=2026-13-01T00:00:00Z", "since=0001-01-01T00:00:00%2B14:00", "color=red", "tenant=other",
    "tag=" + "x" * 300, "%ff=1", "task[]=x",
]  # fmt: skip


@pytest.mark.parametrize("query", BAD_QUERIES)
async def test_a_query_that_makes_no_sense_is_a_422(api: World, query: str) -> None:
    answer = await api.http.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"]


@pytest.mark.parametrize(
    "query",
    ["task=%00", "tag=%ff%fe", "entity=%ed%a0%80", "tag=%27%20OR%201=1--", "entity=%F0%9F%8E%89"],
)
async def test_a_filter_that_fits_nothing_finds_nothing(api: World, query: str) -> None:
    answer = await api.http.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["items"]) == (200, [])


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("deliveries", "status=done"),
        ("deliveries", "cursor=job_" + "0" * 32),
        ("deliveries", "limit=0"),
        ("handler-runs", "status=failed"),
        ("handler-runs", "cursor=x"),
        ("handler-runs", "provider=x"),
    ],
)
async def test_other_lists_check_their_queries_too(api: World, path: str, query: str) -> None:
    assert (await api.http.get(f"/v1/{path}?{query}")).status_code == 422


# -- waiting -----------------------------------------------------------------------------------


async def at_once(
    api: World, path: str, headers: dict[str, str] | None = None
) -> tuple[httpx.Response, float]:
    """The answer, and the seconds of the quickest of three tries: others may have the processors
    for as long as the server would wait."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        answer = await api.http.get(path, headers=headers)
        seconds.append(time.monotonic() - began)
        if seconds[-1] < MAX_WAIT:
            break
    return answer, min(seconds)


async def test_a_final_job_is_not_waited_for(api: World) -> None:
    job = await api.finished()
    headers = {"Prefer": f"wait={MAX_WAIT}"}
    answer, seconds = await at_once(api, f"/v1/jobs/{job['id']}", headers)
    assert answer.json()["status"] == "succeeded"
    assert seconds < MAX_WAIT


@pytest.mark.parametrize("asked", ["0.2", "0", "0.0"])
async def test_waiting_ends_when_time_is_up(api: World, asked: str) -> None:
    job = await api.waiting()
    answer, seconds = await at_once(api, f"/v1/jobs/{job['id']}?wait={asked}")
    assert answer.json()["status"] == "waiting"
    assert float(asked) <= seconds < MAX_WAIT


@pytest.mark.parametrize("asked", ["?wait=1e300", "Prefer"])
async def test_waiting_is_bounded_by_the_server(api: World, asked: str) -> None:
    job = await api.waiting()
    began = time.monotonic()
    headers = {"Prefer": "wait=999999"} if asked == "Prefer" else {}
    path = f"/v1/jobs/{job['id']}" + (asked if asked != "Prefer" else "")
    answer = await api.http.get(path, headers=headers)
    assert answer.json()["status"] == "waiting"
    assert MAX_WAIT <= time.monotonic() - began < MAX_WAIT + PATIENCE
    if headers:
        assert answer.headers["preference-applied"] == f"wait={MAX_WAIT:g}"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=1", "wait=1"),
        ("WAIT=1", "wait=1"),
        ('wait="1"', "wait=1"),
        ("respond-async, wait=0", "wait=0"),
        ("wait=1; strict, wait=0", "wait=1"),
        ("respond-async", None),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=soon", None),
        ("wait=12345678901234567890", None),
        ("await=1", None),
        ('wait="1', None),
    ],
)
async def test_a_preference_is_applied_and_said_or_ignored(
    api: World, prefer: str, applied: str | None
) -> None:
    job = await api.finished()
    answer = await api.http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert answer.headers.get("preference-applied") == applied


async def test_a_second_prefer_header_counts_too(api: World) -> None:
    job = await api.finished()
    headers = [("Prefer", "respond-async"), ("Prefer", "wait=1")]
    answer = await api.http.get(f"/v1/jobs/{job['id']}", headers=headers)
    assert answer.headers["preference-applied"] == "wait=1"


async def test_the_query_wins_over_the_preference(api: World) -> None:
    job = await api.waiting()
    headers = {"Prefer": f"wait={MAX_WAIT}"}
    answer, seconds = await at_once(api, f"/v1/jobs/{job['id']}?wait=0", headers)
    assert seconds < MAX_WAIT
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "soon", "", "1&wait=2"])
async def test_a_wait_that_makes_no_sense_is_a_422(api: World, wait: str) -> None:
    job = await api.finished()
    assert (await api.http.get(f"/v1/jobs/{job['id']}?wait={wait}")).status_code == 422


# -- cancel and retry --------------------------------------------------------------------------


async def test_a_job_that_nobody_began_is_canceled(api: World) -> None:
    job = await api.submit(delay=3600)
    answer = await api.http.post(job["urls"]["cancel"])
    assert answer.status_code == 202
    assert answer.json()["status"] == "canceled"
    assert "cancel" not in answer.json()["urls"]


async def test_a_canceled_job_stays_canceled_however_often_it_is_asked(api: World) -> None:
    job = await api.waiting()
    path = f"/v1/jobs/{job['id']}/cancel"
    answers = await asyncio.gather(*(api.http.post(path) for _ in range(10)))
    assert {a.status_code for a in answers} <= {200, 202}
    ended = await api.until(job["id"], "canceled")
    again = await api.http.post(path)
    assert (again.status_code, again.json()) == (200, ended)


async def test_a_final_job_keeps_its_end(api: World) -> None:
    job = await api.finished()
    answer = await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()) == (200, job)


async def test_a_retry_is_a_new_job(api: World) -> None:
    said = {"priority": 3, "entity": "shot:1", "tags": ["t"], "metadata": {"a": 1}}
    old = await api.submit("acme.refuse", {"a": 1}, **said)
    old = await api.until(old["id"], "failed")
    answer = await api.http.post(old["urls"]["retry"])
    new = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == new["urls"]["self"]
    assert (new["retry_of"], new["task"]) == (old["id"], old["task"])
    assert {k: new[k] for k in said} == said
    assert (await api.job(old["id"])) == old


async def test_an_open_job_is_not_retried(api: World) -> None:
    job = await api.waiting()
    answer = await api.http.post(f"/v1/jobs/{job['id']}/retry")
    assert answer.status_code == 409
    assert "waiting" in answer.json()["detail"]


async def test_a_retry_with_a_key_is_made_once(api: World) -> None:
    old = await api.finished()
    key = {"Idempotency-Key": api.name("key")}
    path = f"/v1/jobs/{old['id']}/retry"
    answers = await asyncio.gather(*(api.http.post(path, headers=key) for _ in range(10)))
    assert sorted(a.status_code for a in answers) == [200] * 9 + [201]
    assert len({a.json()["id"] for a in answers}) == 1


# -- history -----------------------------------------------------------------------------------


async def test_the_history_tells_everything_in_order(api: World) -> None:
    job = await api.finished("acme.refuse")
    page = (await api.http.get(f"/v1/jobs/{job['id']}/events")).json()
    told = [(e["seq"], e["event"], e["status"]) for e in page["items"]]
    assert told == [(0, "submitted", "queued"), (1, "started", "running"), (2, "failed", "failed")]
    assert page["items"][2]["said"]["error"]["message"] == "acme does not want this"
    assert page["next_cursor"] is None
    assert job["version"] == 3


async def test_the_history_never_shows_what_routes_or_proves(api: World) -> None:
    job = await api.waiting()
    token = await api.token(job["id"])
    query = 'SELECT "nonce" FROM "agentflow_attempts" WHERE "token" = '
    nonce = (await api.rows(f"{query}'{token}'"))[0]["nonce"]
    shown = (await api.http.get(f"/v1/jobs/{job['id']}/events")).text
    shown += (await api.http.get(f"/v1/jobs/{job['id']}")).text
    assert token not in shown
    assert nonce not in shown


async def test_the_history_comes_in_pages(api: World) -> None:
    job = await api.finished()
    path = f"/v1/jobs/{job['id']}/events"
    seen: list[int] = []
    cursor: str | None = "-1"
    while cursor is not None:
        page = (await api.http.get(path, params={"after": cursor, "limit": 1})).json()
        seen += [e["seq"] for e in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    "query", ["after=-2", "after=x", "after=99999999999999999999", "limit=0", "limit=1001", "x=1"]
)
async def test_a_history_query_that_makes_no_sense_is_a_422(api: World, query: str) -> None:
    job = await api.finished()
    assert (await api.http.get(f"/v1/jobs/{job['id']}/events?{query}")).status_code == 422


async def test_instants_are_utc_with_a_z(api: World) -> None:
    job = await api.finished()
    for name in ("created_at", "started_at", "finished_at", "deadline"):
        assert job[name].endswith("Z")
        assert abs(datetime.fromisoformat(job[name]) - datetime.now(UTC)) < timedelta(hours=2)
    assert job["wake_at"] is None
