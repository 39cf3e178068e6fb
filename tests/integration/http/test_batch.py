"""POST /v1/jobs/batch: each item is answered as if it had come alone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
from support.patience import PATIENCE
from support.web import World

from agentflow.errors import StoreUnavailable
from agentflow.store.intake import Intake

pytestmark = pytest.mark.asyncio(loop_scope="module")


def echo(said: Any = None, **more: Any) -> dict[str, Any]:
    return {"task": "acme.echo", "input": said, **more}


async def send(api: World, jobs: list[Any]) -> httpx.Response:
    return await api.http.post("/v1/jobs/batch", json={"jobs": jobs})


async def answered(api: World, *jobs: Any) -> Any:
    answer = await send(api, list(jobs))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert [item["index"] for item in said["items"]] == list(range(len(jobs)))
    return said


def statuses(said: Any) -> list[int]:
    return [item["status"] for item in said["items"]]


async def test_every_job_of_a_batch_is_run(api: World) -> None:
    said = await answered(api, *(echo(i) for i in range(450)))
    assert (said["created"], said["repeated"], said["refused"]) == (450, 0, 0)
    ids = [item["job"]["id"] for item in said["items"]]
    assert len(set(ids)) == 450
    async with asyncio.timeout(PATIENCE):
        for number in (0, 199, 200, 449):
            job = await api.until(ids[number], "succeeded")
            assert job["result"]["output"] == number


BAD: list[Any] = [
    None, 7, "acme.echo", [], {}, {"task": "acme.fly"}, {"task": 7}, echo(color="red"),
    {"task": "acme.draw", "input": {"name": ""}}, echo(priority=1.5), echo(deadline="tomorrow"),
    echo(tags="x"), echo(entity="nobody"), echo(idempotency_key=""), echo(idempotency_key="a b"),
    echo(idempotency_key=1), echo("\0"), echo("x" * 300_000), echo(2**70), echo(run_at=1),
    echo(idempotency_key="k" * 256), echo(2**70, idempotency_key="huge"),
]  # fmt: skip


async def test_a_bad_item_fails_alone_and_is_told_why(api: World) -> None:
    before = await api.count("agentflow_jobs")
    good = echo("good", priority=3, tags=["x"], entity="shot:1", delay=3600)
    jobs = [good] + [each for bad in BAD for each in (bad, good)]
    said = await answered(api, *jobs)
    assert statuses(said) == [201] + [422, 201] * len(BAD)
    assert (said["created"], said["refused"]) == (len(BAD) + 1, len(BAD))
    for item in said["items"]:
        if item["status"] == 201:
            assert item["job"]["status"] == "scheduled"
            assert item["error"] is None
        else:
            assert item["job"] is None
            assert item["error"]["status"] == 422
            assert item["error"]["errors"], "each fault has its place"
    assert await api.count("agentflow_jobs") == before + len(BAD) + 1
    kept = await api.job(said["items"][0]["job"]["id"])
    assert (kept["priority"], kept["tags"], kept["entity"]) == (3, ["x"], "shot:1")


async def test_a_deeply_nested_item_fails_alone(api: World) -> None:
    deep = b"[" * 400 + b"]" * 400
    body = b'{"jobs": [{"task": "acme.echo", "input": %s}, {"task": "acme.echo"}]}' % deep
    answer = await api.http.post("/v1/jobs/batch", content=body)
    assert statuses(answer.json()) == [422, 201]


async def test_big_integers_stay_whole(api: World) -> None:
    said = await answered(api, echo(2**63 - 1))
    done = await api.until(said["items"][0]["job"]["id"], "succeeded")
    assert done["result"]["output"] == 2**63 - 1


@pytest.mark.parametrize(
    "body",
    [{}, [], {"jobs": []}, {"jobs": None}, {"jobs": {}}, {"jobs": [echo()], "more": 1},
     {"jobs": [echo()] * 1001}],
)  # fmt: skip
async def test_what_is_no_batch_is_refused_as_a_whole(api: World, body: Any) -> None:
    before = await api.count("agentflow_jobs")
    answer = await api.http.post("/v1/jobs/batch", json=body)
    assert answer.status_code == 422
    assert await api.count("agentflow_jobs") == before


@pytest.mark.parametrize("body", [b"", b"{", b'{"jobs": [NaN]}', b'{"jobs": ["\\ud800"]}'])
async def test_what_is_no_json_is_a_400(api: World, body: bytes) -> None:
    assert (await api.http.post("/v1/jobs/batch", content=body)).status_code == 400


async def test_eight_mebibytes_are_taken_and_no_more(api: World) -> None:
    jobs = [echo("x" * 200_000, delay=3600) for _ in range(41)]
    body = orjson.dumps({"jobs": jobs})
    room = (8 << 20) - len(body)
    assert room > 0
    full = await api.http.post("/v1/jobs/batch", content=body + b" " * room)
    assert full.json()["created"] == 41
    over = await api.http.post("/v1/jobs/batch", content=body + b" " * (room + 1))
    assert over.status_code == 413


async def test_a_batch_sent_again_changes_nothing(api: World) -> None:
    jobs = [echo(i, idempotency_key=api.name("key"), delay=3600) for i in range(5)]
    first = await answered(api, *jobs)
    before = await api.count("agentflow_jobs")
    again = await answered(api, *jobs)
    assert statuses(again) == [200] * 5
    assert again["repeated"] == 5
    assert [i["job"] for i in again["items"]] == [i["job"] for i in first["items"]]
    assert await api.count("agentflow_jobs") == before


async def test_a_repeat_tells_how_far_the_job_is(api: World) -> None:
    job = echo("x", idempotency_key=api.name("key"))
    id = (await answered(api, job))["items"][0]["job"]["id"]
    await api.until(id, "succeeded")
    assert (await answered(api, job))["items"][0]["job"] == {"id": id, "status": "succeeded"}


async def test_one_key_twice_in_a_batch_is_one_job(api: World) -> None:
    key = api.name("key")
    one, other = echo(1, idempotency_key=key), echo(2, idempotency_key=key)
    said = await answered(api, one, other, one, {**one, "priority": 1})
    assert statuses(said) == [201, 409, 200, 409]
    first = said["items"][0]["job"]["id"]
    assert said["items"][2]["job"]["id"] == first
    assert first in said["items"][1]["error"]["detail"]


async def test_a_batch_and_a_submit_share_their_keys(api: World) -> None:
    key = api.name("key")
    body = echo("shared", delay=3600)
    alone = await api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
    said = await answered(api, {**body, "idempotency_key": key})
    assert said["items"][0] == {
        "index": 0,
        "status": 200,
        "job": {"id": alone.json()["id"], "status": "scheduled"},
        "error": None,
    }


async def test_what_was_good_once_is_not_refused_later(api: World) -> None:
    clock = api.app.runtime.clock
    until = (clock.now() + timedelta(seconds=30)).isoformat()
    job = echo("late", idempotency_key=api.name("key"), deadline=until)
    first = await answered(api, job)
    assert statuses(first) == [201]
    clock.advance(31)
    again = await answered(api, job, {**job, "input": "other"}, {**job, "idempotency_key": "n"})
    assert statuses(again) == [200, 422, 422]
    assert again["items"][0]["job"]["id"] == first["items"][0]["job"]["id"]


async def test_a_store_that_fails_in_between_is_told_item_by_item(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_all = Intake.add_all

    async def flaky(self: Intake, items: Any) -> list[Any]:
        return [*(await add_all(self, items[:1])), *(StoreUnavailable() for _ in items[1:])]

    monkeypatch.setattr(Intake, "add_all", flaky)
    said = await answered(api, echo(1), {}, echo(2))
    assert statuses(said) == [201, 422, 503]
    assert (said["created"], said["refused"]) == (1, 2)


async def test_a_store_that_takes_nothing_is_a_503(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: Intake, items: Any) -> list[Any]:
        return [StoreUnavailable() for _ in items]

    monkeypatch.setattr(Intake, "add_all", away)
    assert (await send(api, [echo(), {}])).status_code == 503
