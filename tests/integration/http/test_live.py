"""Server-sent events: nothing missed, nothing twice, an end at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import orjson
import pytest
from support.contract import EVENTS
from support.patience import PATIENCE
from support.web import World

from agentflow.web import live

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = {"Accept": EVENTS}


class Event(NamedTuple):
    seq: int
    name: str
    said: dict[str, Any]


@asynccontextmanager
async def following(
    api: World, job: str, after: int | None = None
) -> AsyncIterator[AsyncIterator[Event]]:
    """The live events of a job; `after` is sent as Last-Event-ID."""
    headers = LIVE if after is None else {**LIVE, "Last-Event-ID": str(after)}
    async with api.http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(EVENTS)
        yield _events(api, answer)


async def _events(api: World, answer: Any) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            said = orjson.loads(fields["data"])
            api.contract.validate(said, "Entry")
            assert said["seq"] == int(fields["id"])
            assert said["event"] == fields["event"]
            yield Event(said["seq"], fields["event"], said)
            fields = {}


async def whole(api: World, job: str, after: int | None = None) -> list[int]:
    """The seqs of a stream that is followed to its end."""
    async with asyncio.timeout(PATIENCE), following(api, job, after) as events:
        return [event.seq async for event in events]


async def progress(api: World, job: Any, fraction: float) -> None:
    said = {"id": job["external_id"], "status": "working", "fraction": fraction}
    answer = await api.deliver(f"acme/{await api.token(job['id'])}", said)
    assert (await api.read(answer.json()["id"]))["status"] == "applied"


async def finish(api: World, job: Any) -> None:
    said = {"id": job["external_id"], "status": "done"}
    answer = await api.deliver(f"acme/{await api.token(job['id'])}", said)
    assert answer.status_code == 202


async def test_a_stream_of_a_final_job_is_its_history(api: World) -> None:
    job = await api.finished()
    assert await whole(api, job["id"]) == [0, 1, 2]


async def test_a_stream_of_an_open_job_goes_on_to_its_end(api: World) -> None:
    job = await api.waiting()
    async with asyncio.timeout(PATIENCE), following(api, job["id"]) as events:
        seen = [await anext(events) for _ in range(3)]
        assert [e.name for e in seen] == ["submitted", "started", "accepted"]
        await progress(api, job, 0.5)
        event = await anext(events)
        assert event.said["progress"] == {"fraction": 0.5, "message": None}
        await finish(api, job)
        rest = [e async for e in events]
    assert [(e.seq, e.name, e.said["status"]) for e in rest] == [(4, "succeeded", "succeeded")]


async def test_an_event_is_told_by_a_ring(api: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_EVERY", 3600.0)
    job = await api.waiting()
    async with asyncio.timeout(PATIENCE), following(api, job["id"]) as events:
        for _ in range(3):
            await anext(events)
        await finish(api, job)
        await anext(events)


async def test_what_happens_while_the_history_is_read_is_not_missed(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await api.waiting()
    read = live.queries.history
    late = iter([0.3])

    async def history(*args: Any) -> Any:
        found = await read(*args)
        for fraction in late:  # once, between the reading and the next wait
            await progress(api, job, fraction)
        return found

    monkeypatch.setattr(live.queries, "history", history)
    monkeypatch.setattr(live, "LOOK_EVERY", 3600.0)
    async with asyncio.timeout(PATIENCE), following(api, job["id"]) as events:
        assert [(await anext(events)).seq for _ in range(4)] == [0, 1, 2, 3]


async def test_a_resumed_stream_misses_and_repeats_nothing(api: World) -> None:
    job = await api.waiting()
    seen: list[int] = []
    for turn in range(4):
        after = seen[-1] if seen else None
        async with asyncio.timeout(PATIENCE), following(api, job["id"], after) as events:
            seen.append((await anext(events)).seq)
            await progress(api, job, 0.1 * (turn + 1))
        await progress(api, job, 0.1 * (turn + 1) + 0.05)  # while nobody listens
    await finish(api, job)
    seen += await whole(api, job["id"], seen[-1])
    assert seen == list(range((await api.job(job["id"]))["version"]))


async def test_after_stands_in_for_the_header(api: World) -> None:
    job = await api.finished()
    path = f"/v1/jobs/{job['id']}/events?after=1"
    answer = await api.http.get(path, headers=LIVE)
    assert answer.text.count("data: ") == 1
    answer = await api.http.get(path, headers={**LIVE, "Last-Event-ID": "0"})
    assert answer.text.count("data: ") == 2, "the header is the newer"


async def test_a_stream_resumed_after_the_end_is_told_to_stay_away(api: World) -> None:
    """An EventSource comes back after every end but a 204."""
    job = await api.finished()
    path = f"/v1/jobs/{job['id']}/events"
    for last in ("2", "999"):
        answer = await api.http.get(path, headers={**LIVE, "Last-Event-ID": last})
        assert answer.status_code == 204


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30, "\xb2", "0 0", "0x1", ""])
async def test_a_last_event_id_that_is_none_is_a_422(api: World, last: str) -> None:
    job = await api.finished()
    headers = {**LIVE, "Last-Event-ID": last.encode("latin-1")}
    answer = await api.http.get(f"/v1/jobs/{job['id']}/events", headers=headers)
    assert answer.status_code == 422


async def test_no_stream_is_opened_for_a_job_that_is_not_there(api: World) -> None:
    answer = await api.http.get("/v1/jobs/nope/events", headers=LIVE)
    assert answer.status_code == 404


async def test_a_head_request_does_not_follow(api: World) -> None:
    job = await api.waiting()
    answer = await api.http.head(f"/v1/jobs/{job['id']}/events", headers=LIVE, timeout=PATIENCE)
    assert answer.status_code == 200


async def test_a_long_history_comes_whole(api: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAGE", 2)
    job = await api.waiting()
    for i in range(5):
        await progress(api, job, i / 10)
    following_it = asyncio.create_task(whole(api, job["id"]))
    await asyncio.sleep(0.05)
    await finish(api, job)
    assert await following_it == list(range(9))
    assert await whole(api, job["id"]) == list(range(9))


async def test_fifty_clients_hear_the_same(api: World) -> None:
    job = await api.waiting()
    clients = [asyncio.create_task(whole(api, job["id"])) for _ in range(50)]
    await asyncio.sleep(0.1)
    for i in range(5):
        await progress(api, job, i / 10)
    await finish(api, job)
    heard = await asyncio.gather(*clients)
    assert heard == [list(range(9))] * 50


async def test_a_client_that_goes_away_leaves_nothing(api: World) -> None:
    job = await api.waiting()
    bells = api.app.runtime.bus._bells
    for _ in range(10):
        async with following(api, job["id"]) as events:
            await anext(events)
    async with asyncio.timeout(PATIENCE):
        while bells:
            await asyncio.sleep(0.01)


async def test_a_stream_is_not_kept_by_anybody_on_the_way(api: World) -> None:
    job = await api.finished()
    answer = await api.http.get(f"/v1/jobs/{job['id']}/events", headers=LIVE)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
