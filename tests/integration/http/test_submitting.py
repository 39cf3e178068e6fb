"""POST /v1/jobs: what is good is stored once, what is bad changes nothing and is told why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from support.web import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = {"task": "acme.draw", "input": {"name": "x"}}


def deep(levels: int) -> bytes:
    return b'{"task": "acme.echo", "input": %s1%s}' % (b"[" * levels, b"]" * levels)


def instant(seconds: float, offset: float = 0.0) -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return at.astimezone(timezone(timedelta(hours=offset))).isoformat()


NO_JSON = {
    "empty": b"",
    "words": b"hello",
    "half": b'{"task": "acme.draw"',
    "two": b"{} {}",
    "not UTF-8": b'{"task": "\xff\xfe"}',
    "NaN": b'{"task": "acme.echo", "input": NaN}',
    "infinity": b'{"task": "acme.echo", "input": 1e999}',
    "lone surrogate": b'{"task": "acme.echo", "input": "\\ud800"}',
    "nested beyond reading": deep(5000),
    "a form": b"task=acme.draw",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
async def test_what_is_no_json_is_a_400_and_stores_nothing(api: World, body: bytes) -> None:
    before = await api.count("agentflow_jobs")
    answer = await api.http.post("/v1/jobs", content=body)
    assert answer.status_code == 400
    assert await api.count("agentflow_jobs") == before


BAD: dict[str, tuple[Any, str]] = {
    "a list": ([], "body"),
    "null": (None, "body"),
    "text": ("acme.draw", "body"),
    "no task": ({"input": {}}, "task"),
    "unknown task": ({"task": "acme.fly"}, "task"),
    "task of a wrong type": ({"task": 7}, "task"),
    "task with NUL": ({"task": "acme.draw\0"}, "task"),
    "what agentflow alone may sign": ({"task": "agentflow.callback", "input": {}}, "task"),
    "no callbacks here": (GOOD | {"callback_url": "https://a.example/"}, "callback_url"),
    "long task": ({"task": "a" * 5000}, "task"),
    "unknown field": (GOOD | {"color": "red"}, "color"),
    "input missing": ({"task": "acme.draw"}, "input"),
    "input of a wrong type": (GOOD | {"input": [1]}, "input"),
    "unknown input field": (GOOD | {"input": {"name": "x", "size": 1}}, "input.size"),
    "input beyond its limit": (GOOD | {"input": {"name": "x", "times": 11}}, "input.times"),
    "input with NUL": ({"task": "acme.echo", "input": {"a": "b\0c"}}, "input"),
    "input key with NUL": ({"task": "acme.echo", "input": {"b\0c": 1}}, "input"),
    "large input": ({"task": "acme.echo", "input": "x" * 300_000}, "input"),
    "text for a number": (GOOD | {"priority": "5"}, "priority"),
    "true for a number": (GOOD | {"priority": True}, "priority"),
    "priority beyond": (GOOD | {"priority": 101}, "priority"),
    "negative delay": (GOOD | {"delay": -1}, "delay"),
    "delay of ages": (GOOD | {"delay": 1e12}, "delay"),
    "delay as text": (GOOD | {"delay": "nan"}, "delay"),
    "run_at as a number": (GOOD | {"run_at": 1795479473}, "run_at"),
    "run_at as a number in text": (GOOD | {"run_at": "1795479473"}, "run_at"),
    "run_at without an offset": (GOOD | {"run_at": "2026-11-24T10:00:00"}, "run_at"),
    "run_at on no day": (GOOD | {"run_at": "2026-02-30T10:00:00Z"}, "run_at"),
    "run_at before time": (GOOD | {"run_at": "0001-01-01T00:00:00+14:00"}, "run_at"),
    "run_at in ages": (GOOD | {"run_at": "9999-12-31T23:59:59-14:00"}, "run_at"),
    "run_at in two years": (GOOD | {"run_at": instant(2 * 366 * 86_400)}, "run_at"),
    "run_at and delay": (GOOD | {"run_at": instant(60), "delay": 1}, "run_at"),
    "deadline past": (GOOD | {"deadline": instant(-1)}, "deadline"),
    "deadline before the start": (GOOD | {"deadline": instant(60), "delay": 3600}, "deadline"),
    "deadline before run_at": (
        GOOD | {"deadline": instant(60, 5), "run_at": instant(3600, -5)},
        "deadline",
    ),
    "deadline of nothing": (GOOD | {"deadline": 0}, "deadline"),
    "negative deadline": (GOOD | {"deadline": -5}, "deadline"),
    "deadline in ages": (GOOD | {"deadline": "9999-12-31T23:59:59Z"}, "deadline"),
    "deadline without an offset": (GOOD | {"deadline": "2026-11-24T10:00:00"}, "deadline"),
    "deadline as a list": (GOOD | {"deadline": []}, "deadline"),
    "no attempts": (GOOD | {"max_attempts": 0}, "max_attempts"),
    "a thousand attempts": (GOOD | {"max_attempts": 1000}, "max_attempts"),
    "entity without an id": (GOOD | {"entity": "shot"}, "entity"),
    "entity with a newline": (GOOD | {"entity": "shot:1\nX"}, "entity"),
    "tag with a space": (GOOD | {"tags": ["a b"]}, "tags"),
    "long tag": (GOOD | {"tags": ["t" * 65]}, "tags"),
    "many tags": (GOOD | {"tags": [f"t{i}" for i in range(21)]}, "tags"),
    "tags as text": (GOOD | {"tags": "a"}, "tags"),
    "metadata as a list": (GOOD | {"metadata": []}, "metadata"),
    "large metadata": (GOOD | {"metadata": {"a": "x" * 20_000}}, "metadata"),
    "metadata with NUL": (GOOD | {"metadata": {"a": "\0"}}, "metadata"),
}


@pytest.mark.parametrize(("said", "loc"), BAD.values(), ids=BAD.keys())
async def test_what_does_not_fit_is_a_422_that_names_the_place(
    api: World, said: Any, loc: str
) -> None:
    before = await api.count("agentflow_jobs")
    answer = await api.http.post("/v1/jobs", content=orjson.dumps(said))
    assert answer.status_code == 422, answer.text
    assert loc in {e["loc"] for e in answer.json()["errors"]}
    assert len(answer.content) < 4000, "an error is no echo"
    assert await api.count("agentflow_jobs") == before


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b'{"task": "acme.echo", "input": 123456789012345678901234567890}', "input"),
        (b'{"task": "acme.echo", "input": [-18446744073709551616]}', "input"),
        (b'{"task": "acme.echo", "priority": 1%s}' % (b"0" * 40), "priority"),
        (b'{"task": "acme.echo", "delay": 1%s}' % (b"0" * 300), "delay"),
        (deep(250), "body"),
        (deep(900), "body"),
    ],
)
async def test_numbers_and_depths_that_cannot_be_kept_whole_are_refused(
    api: World, body: bytes, loc: str
) -> None:
    answer = await api.http.post("/v1/jobs", content=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == loc


@pytest.mark.parametrize("where", ["input", "metadata"])
async def test_what_is_taken_can_be_shown_however_deep_it_is(api: World, where: str) -> None:
    taken = []
    for levels in range(100, 256, 3):
        value = orjson.loads(b"[" * levels + b"]" * levels)
        given = {"input": value} if where == "input" else {"input": 1, "metadata": {"a": value}}
        answer = await api.http.post("/v1/jobs", json={"task": "acme.echo", **given})
        assert answer.status_code in (201, 422), answer.text
        if answer.status_code == 201:
            taken.append(answer.json()["urls"])
    assert taken
    for url in (taken[-1]["self"] + "?wait=1", taken[-1]["events"], "/v1/jobs", "/v1/events"):
        assert (await api.http.get(url)).status_code == 200, url


async def test_errors_do_not_grow_with_what_was_sent(api: World) -> None:
    answer = await api.http.post("/v1/jobs", json=GOOD | {f"f{i}": i for i in range(5000)})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) <= 20


async def test_an_input_is_kept_as_it_was_said(api: World) -> None:
    said = {
        "unicode": "ünï 漢字 🎉",
        "escaped": "\\u0000 and \\ud800 as text",
        "numbers": [0, -1, 1.5, 2**63 - 1, 1e300],
        "nothing": None,
        "": {"deep": [[[[[]]]]]},
    }
    job = await api.finished("acme.echo", said)
    assert job["result"]["output"] == said


async def test_a_body_too_large_is_refused_however_it_comes(api: World) -> None:
    large = b'{"task": "acme.echo", "input": "%s"}' % (b"x" * 1_100_000)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 65_536):
            yield large[start : start + 65_536]

    for content in (large, chunks()):
        answer = await api.http.post("/v1/jobs", content=content)
        assert answer.status_code == 413
        assert answer.json()["title"] == "Too large"


@pytest.mark.parametrize("length", ["9" * 18, "9" * 40, "9" * 5000])
async def test_an_absurd_content_length_is_refused(api: World, length: str) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    said = await api.raw(head.encode() + b"{}", until=b"\r\n\r\n")
    assert said.split()[1] in {b"400", b"413"}


async def test_a_body_that_stops_halfway_harms_nobody(api: World) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    with pytest.raises(TimeoutError):
        await api.raw(head, seconds=0.1)  # the connection is closed then
    assert (await api.http.get("/healthz")).status_code == 200


# -- what is stored ----------------------------------------------------------------------------


async def test_a_job_is_answered_with_its_place(api: World) -> None:
    said = GOOD | {
        "entity": "shot:42", "priority": 7, "tags": ["a", "b", "a"], "metadata": {"k": [1]},
        "max_attempts": 5,
    }  # fmt: skip
    answer = await api.http.post("/v1/jobs", json=said)
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["tags"] == ["a", "b"]
    assert {k: job[k] for k in ("entity", "priority", "metadata", "max_attempts")} == {
        k: said[k] for k in ("entity", "priority", "metadata", "max_attempts")
    }


async def test_an_instant_means_the_same_in_every_zone(api: World) -> None:
    """SQLite compares instants as text."""
    at = instant(1.5, offset=-9)
    job = await api.submit("acme.echo", "x", run_at=at, deadline=instant(60, offset=13))
    assert job["status"] == "scheduled"
    assert job["deadline"].endswith("Z")
    done = await api.until(job["id"], "succeeded", "expired")
    assert done["status"] == "succeeded"
    assert datetime.fromisoformat(done["started_at"]) >= datetime.fromisoformat(at)


async def test_a_start_in_the_past_is_now(api: World) -> None:
    job = await api.submit("acme.echo", "x", run_at=instant(-86_400))
    assert datetime.fromisoformat(job["deadline"]) > datetime.now(UTC)
    assert (await api.until(job["id"], "succeeded", "expired"))["status"] == "succeeded"


async def test_a_delayed_job_is_scheduled(api: World) -> None:
    job = await api.submit(delay=3600)
    assert (job["status"], job["started_at"]) == ("scheduled", None)
    created = datetime.fromisoformat(job["created_at"])
    assert datetime.fromisoformat(job["wake_at"]) - created == timedelta(hours=1)


# -- idempotency -------------------------------------------------------------------------------


async def test_the_same_key_and_body_give_the_same_job(api: World) -> None:
    key = {"Idempotency-Key": api.name("key")}
    first = await api.http.post("/v1/jobs", json=GOOD, headers=key)
    body = orjson.dumps({"input": {"name": "x"}, "task": "acme.draw", "delay": None})
    again = await api.http.post("/v1/jobs", content=body, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]


@pytest.mark.parametrize(
    "change", [{"input": {"name": "y"}}, {"task": "bank.draw"}, {"priority": 1}, {"tags": ["t"]}]
)
async def test_the_same_key_with_another_body_is_a_409(api: World, change: Any) -> None:
    key = {"Idempotency-Key": api.name("key")}
    first = await api.http.post("/v1/jobs", json=GOOD, headers=key)
    other = await api.http.post("/v1/jobs", json=GOOD | change, headers=key)
    assert other.status_code == 409
    assert first.json()["id"] in other.json()["detail"]


async def test_a_hundred_submits_with_one_key_make_one_job(api: World) -> None:
    key = {"Idempotency-Key": api.name("key")}
    before = await api.count("agentflow_jobs")
    said = {"task": "acme.draw", "input": {"name": api.name("once")}}
    posts = [api.http.post("/v1/jobs", json=said, headers=key) for _ in range(100)]
    answers = await asyncio.gather(*posts)
    assert sorted(a.status_code for a in answers) == [200] * 99 + [201]
    assert len({a.json()["id"] for a in answers}) == 1
    assert await api.count("agentflow_jobs") == before + 1
    await api.until(answers[0].json()["id"], "waiting")
    assert api.fakes.calls.count(said["input"]["name"]) == 1


async def test_of_contradicting_submits_at_once_one_wins(api: World) -> None:
    key = {"Idempotency-Key": api.name("key")}
    names = [api.name("rival") for _ in range(10)]
    posts = [
        api.http.post("/v1/jobs", json={"task": "acme.draw", "input": {"name": name}}, headers=key)
        for name in names
    ]
    answers = await asyncio.gather(*posts)
    assert sorted(a.status_code for a in answers) == [201] + [409] * 9


async def test_a_repeat_is_no_fault_because_time_went_on(api: World) -> None:
    key = {"Idempotency-Key": api.name("key")}
    deadline = instant(2.0)
    said = {"task": "acme.echo", "input": 1, "deadline": deadline}
    first = await api.http.post("/v1/jobs", json=said, headers=key)
    left = datetime.fromisoformat(deadline) - datetime.now(UTC)
    await asyncio.sleep(max(left.total_seconds(), 0) + 0.05)
    again = await api.http.post("/v1/jobs", json=said, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = await api.http.post("/v1/jobs", json=said | {"input": 2}, headers=key)
    assert other.status_code == 422


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, "a\tb"])
async def test_a_key_that_is_none_is_refused(api: World, key: str) -> None:
    answer = await api.http.post(
        "/v1/jobs", json=GOOD, headers={"Idempotency-Key": key.encode("latin-1")}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == "idempotency_key"


async def test_two_keys_are_refused(api: World) -> None:
    headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
    answer = await api.http.post("/v1/jobs", json=GOOD, headers=headers)
    assert answer.status_code == 422
