"""Cancel and retry by filter: a rehearsal first, nothing beside the filter, nothing twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.web import World

from agentflow.errors import StoreUnavailable
from agentflow.store.intake import Intake

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOTH = pytest.mark.parametrize("verb", ["cancel", "retry"])


async def ask(api: World, verb: str, **said: Any) -> Any:
    answer = await api.http.post(f"/v1/jobs/{verb}", json=said)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def scheduled(api: World, tag: str, count: int) -> list[str]:
    """Open jobs that stay as they are."""
    jobs = [await api.submit("acme.echo", delay=3600, tags=[tag]) for _ in range(count)]
    return [job["id"] for job in jobs]


async def refused(api: World, tag: str, count: int) -> list[str]:
    """Failed jobs, in the order in which they were submitted."""
    jobs = [await api.submit("acme.refuse", tags=[tag]) for _ in range(count)]
    return [(await api.until(job["id"], "failed"))["id"] for job in jobs]


async def retries(api: World, ids: list[str]) -> dict[str, str]:
    """New jobs by the old ones."""
    jobs = (await api.http.get("/v1/jobs", params={"limit": 200})).json()["items"]
    return {job["retry_of"]: job["id"] for job in jobs if job["retry_of"] in ids}


@BOTH
@pytest.mark.parametrize(
    "body",
    [{}, {"filter": {}}, {"filter": None}, {"filter": {"status": None, "tag": None}}, [],
     {"filter": {"status": "done"}}, {"filter": {"color": "red"}}, {"filter": {"since": 1}},
     {"filter": {"tag": "x"}, "limit": 0}, {"filter": {"tag": "x"}, "limit": 1001},
     {"filter": {"tag": "x"}, "dry_run": "no"}, {"filter": {"tag": "x"}, "more": 1},
     {"filter": {"tag": 1}}, {"filter": {"task": "a" * 300}}],
)  # fmt: skip
async def test_a_filter_says_something_and_nothing_strange(
    api: World, verb: str, body: Any
) -> None:
    answer = await api.http.post(f"/v1/jobs/{verb}", json=body)
    assert answer.status_code == 422


@BOTH
async def test_a_rehearsal_changes_nothing(api: World, verb: str) -> None:
    tag = api.name("tag")
    ids = await (scheduled if verb == "cancel" else refused)(api, tag, 2)
    jobs, letters = await api.count("agentflow_jobs"), await api.count("agentflow_inbox")
    for more in ({}, {"dry_run": True}):
        said = await ask(api, verb, filter={"tag": tag}, **more)
        assert said == {"matched": 2, "done": 0, "ids": ids, "dry_run": True, "more": False}
    assert await api.count("agentflow_jobs") == jobs
    assert await api.count("agentflow_inbox") == letters


async def test_cancel_ends_the_open_jobs_of_the_filter_and_no_others(api: World) -> None:
    tag, other = api.name("tag"), api.name("tag")
    done = await api.submit("acme.echo", tags=[tag])
    await api.until(done["id"], "succeeded")
    waiting = await api.waiting(tags=[tag])
    ids = [waiting["id"], *(await scheduled(api, tag, 2))]
    beside = await scheduled(api, other, 1)
    said = await ask(api, "cancel", filter={"tag": tag}, dry_run=False)
    assert said == {"matched": 3, "done": 3, "ids": ids, "dry_run": False, "more": False}
    for id in ids:
        await api.until(id, "canceled", "canceling")
    assert (await api.job(done["id"]))["status"] == "succeeded"
    assert (await api.job(beside[0]))["status"] == "scheduled"


async def test_a_cancel_asked_for_again_goes_on_to_the_next(api: World) -> None:
    tag = api.name("tag")
    ids = await scheduled(api, tag, 5)
    seen = []
    for matched, more in ((3, True), (3, True), (1, False), (0, False)):
        said = await ask(api, "cancel", filter={"tag": tag}, dry_run=False, limit=2)
        assert (said["matched"], said["more"]) == (matched, more)
        assert said["done"] == len(said["ids"])
        seen += said["ids"]
    assert seen == ids, "the oldest first, none twice, although no one was waited for"
    for id in ids:
        await api.until(id, "canceled")
        entries = (await api.http.get(f"/v1/jobs/{id}/events")).json()["items"]
        assert [e["event"] for e in entries] == ["submitted", "cancel_requested"]


async def test_jobs_on_their_way_to_the_end_are_left_alone(api: World) -> None:
    tag, name = api.name("tag"), api.name()
    gate = api.fakes.gates[name] = asyncio.Event()
    job = await api.submit("acme.draw", {"name": name}, tags=[tag])
    await api.until(job["id"], "running")
    await ask(api, "cancel", filter={"tag": tag}, dry_run=False)
    await api.until(job["id"], "canceling")
    assert (await ask(api, "cancel", filter={"tag": tag}))["matched"] == 0
    for status in ("canceling", "succeeded"):
        assert (await ask(api, "cancel", filter={"tag": tag, "status": status}))["matched"] == 0
    gate.set()


@BOTH
async def test_there_is_more_only_if_there_is(api: World, verb: str) -> None:
    tag = api.name("tag")
    ids = await (scheduled if verb == "cancel" else refused)(api, tag, 3)
    for limit, matched, more in ((2, 3, True), (3, 3, False), (4, 3, False)):
        said = await ask(api, verb, filter={"tag": tag}, limit=limit)
        assert (said["matched"], said["more"], said["ids"]) == (matched, more, ids[:limit])


async def test_retry_submits_each_failed_job_once_however_often_it_is_asked(api: World) -> None:
    tag = api.name("tag")
    ids = await refused(api, tag, 3)
    said = await ask(api, "retry", filter={"tag": tag}, dry_run=False)
    assert said == {"matched": 3, "done": 3, "ids": ids, "dry_run": False, "more": False}
    new = await retries(api, ids)
    assert sorted(new) == sorted(ids)
    for old, id in new.items():
        job = await api.until(id, "failed")
        before = await api.job(old)
        for field in ("task", "tags", "entity", "priority", "metadata", "max_attempts"):
            assert job[field] == before[field]
    again = await ask(api, "retry", filter={"tag": tag}, dry_run=False)
    assert sorted(again["ids"]) == sorted(new.values()), "those that failed anew, not the old"


async def test_two_retries_at_once_make_no_job_twice(api: World) -> None:
    tag = api.name("tag")
    ids = await refused(api, tag, 5)
    before = await api.count("agentflow_jobs")
    said = {"filter": {"tag": tag}, "dry_run": False}
    await asyncio.gather(*(ask(api, "retry", **said) for _ in range(3)))
    made = await api.count("agentflow_jobs") - before
    assert len(await retries(api, ids)) == 5
    assert made >= 5
    rows = await api.rows('SELECT "retry_of" FROM "agentflow_jobs" WHERE "retry_of" IS NOT NULL')
    again = [row["retry_of"] for row in rows]
    assert len(again) == len(set(again))


async def test_retry_leaves_out_open_jobs_and_those_that_succeeded(api: World) -> None:
    tag = api.name("tag")
    done = await api.submit("acme.echo", {"a": [1, "ü"]}, tags=[tag], metadata={"m": 1})
    await api.until(done["id"], "succeeded")
    await scheduled(api, tag, 1)
    assert (await ask(api, "retry", filter={"tag": tag}))["matched"] == 0
    for status in ("scheduled", "failed"):
        found = await ask(api, "retry", filter={"tag": tag, "status": status})
        assert found["matched"] == 0
    said = await ask(api, "retry", filter={"tag": tag, "status": "succeeded"}, dry_run=False)
    assert said["ids"] == [done["id"]]
    new = await api.until((await retries(api, said["ids"]))[done["id"]], "succeeded")
    assert new["result"]["output"] == {"a": [1, "ü"]}
    assert new["metadata"] == {"m": 1}
    told = await ask(api, "retry", filter={"tag": tag, "status": "succeeded"})
    assert told["ids"] == [new["id"]]


async def test_what_no_longer_fits_its_task_is_not_retried(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = api.name("tag")
    ids = await refused(api, tag, 2)
    odd = await api.submit("bank.refuse", tags=[tag])
    await api.until(odd["id"], "failed")
    monkeypatch.delitem(api.app.runtime.catalogue.tasks, "bank.refuse")
    said = await ask(api, "retry", filter={"tag": tag}, dry_run=False)
    assert (said["matched"], said["done"], said["ids"]) == (3, 2, ids)


async def test_every_condition_of_a_filter_counts(api: World) -> None:
    tag, entity = api.name("tag"), f"shot:{api.name('e')}"
    job = await api.submit("bank.echo", delay=3600, tags=[tag], entity=entity)
    await api.submit("acme.echo", delay=3600, tags=[tag])
    at = job["created_at"]
    late = "2100-01-01T00:00:00Z"
    for wanted, matched in (
        ({"entity": entity}, 1), ({"task": "bank.echo", "tag": tag}, 1), ({"tag": tag}, 2),
        ({"tag": tag, "since": at}, 2), ({"tag": tag, "since": late}, 0),
        ({"tag": tag, "status": "scheduled"}, 2), ({"tag": tag, "status": "running"}, 0),
        ({"tag": tag, "entity": "shot:other"}, 0),
    ):  # fmt: skip
        assert (await ask(api, "cancel", filter=wanted))["matched"] == matched, wanted


@BOTH
async def test_a_store_that_takes_nothing_is_a_503(
    api: World, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    async def away(self: Intake, items: Any) -> list[Any]:
        return [StoreUnavailable() for _ in items]

    tag = api.name("tag")
    await (scheduled if verb == "cancel" else refused)(api, tag, 2)
    monkeypatch.setattr(Intake, "add_all", away)
    said = {"filter": {"tag": tag}, "dry_run": False}
    assert (await api.http.post(f"/v1/jobs/{verb}", json=said)).status_code == 503
