"""GET /v1/events: everything once, in one order, over pages, streams and breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from support.contract import EVENTS
from support.patience import PATIENCE
from support.web import World

from agentflow.store.feed import Position
from agentflow.web import feed as feed_module

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = {"Accept": EVENTS}
Place = tuple[str, int]
"""(job, seq): what an entry is known by."""


async def page(api: World, after: str | None = None, limit: int | None = None) -> Any:
    params = {"after": after, "limit": limit}
    answer = await api.http.get(
        "/v1/events", params={k: v for k, v in params.items() if v is not None}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def walked(api: World, after: str | None, limit: int) -> list[Place]:
    """All entries from here to the end, page by page."""
    found: list[Place] = []
    while True:
        said = await page(api, after, limit)
        if not said["items"]:
            assert said["next_cursor"] == (after or "0.0")
            return found
        assert len(said["items"]) <= limit
        assert said["next_cursor"] != after
        found += [place(entry) for entry in said["items"]]
        after = said["next_cursor"]


def place(entry: Any) -> Place:
    return entry["job_id"], entry["seq"]


async def given(api: World) -> None:
    """Wait until all that is stored is given: on PostgreSQL it waits for older transactions."""
    last = 'SELECT "xact", "id" FROM "agentflow_history" ORDER BY "xact" DESC, "id" DESC LIMIT 1'
    await api.app.runtime.writer.settled()
    async with asyncio.timeout(PATIENCE):
        while True:
            rows = await api.rows(last)
            expected = f"{rows[0]['xact']}.{rows[0]['id']}" if rows else "0.0"
            if (await page(api, "now"))["next_cursor"] == expected:
                return
            await asyncio.sleep(0.005)


async def now(api: World) -> str:
    await given(api)
    said = await page(api, "now")
    assert said["items"] == []
    return str(said["next_cursor"])


async def stored(api: World) -> set[Place]:
    rows = await api.rows('SELECT "job_id", "seq" FROM "agentflow_history"')
    return {(row["job_id"], row["seq"]) for row in rows}


@asynccontextmanager
async def live(api: World, after: str | None = None, last: str | None = None) -> AsyncIterator[Any]:
    """The entries of a live stream, each with its cursor."""
    params = {} if after is None else {"after": after}
    headers = LIVE if last is None else {**LIVE, "Last-Event-ID": last}
    async with api.http.stream("GET", "/v1/events", params=params, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(EVENTS)
        yield _events(api, answer)


async def _events(api: World, answer: Any) -> AsyncIterator[tuple[str, Any]]:
    """First the cursor it begins at, without an entry."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            said = orjson.loads(fields["data"])
            api.contract.validate(said, "Entry")
            assert said["event"] == fields["event"]
            yield fields["id"], said
            fields = {}
        elif "id" in fields:
            yield fields["id"], None
            fields = {}


async def take(events: Any, count: int) -> list[tuple[str, Any]]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(events) for _ in range(count)]


async def test_the_feed_is_the_history_of_all_jobs_each_entry_once(api: World) -> None:
    before = await now(api)
    jobs = [await api.finished(input=i) for i in range(4)]
    await given(api)
    for limit in (1, 2, 5, 1000):
        found = await walked(api, before, limit)
        assert len(set(found)) == len(found)
        assert set(found) == {(job["id"], seq) for job in jobs for seq in range(3)}
        for job in jobs:
            assert [seq for id, seq in found if id == job["id"]] == [0, 1, 2], "in their order"


async def test_without_a_cursor_the_feed_begins_at_the_beginning(api: World) -> None:
    await api.finished()
    await given(api)
    found = await walked(api, None, 3)
    assert set(found) == await stored(api)
    assert len(set(found)) == len(found)


async def test_an_entry_is_what_the_job_shows(api: World) -> None:
    before = await now(api)
    job = await api.finished()
    await given(api)
    shown = (await api.http.get(f"/v1/jobs/{job['id']}/events")).json()["items"]
    assert (await page(api, before))["items"] == shown


async def test_a_cursor_with_nothing_behind_it_comes_back(api: World) -> None:
    before = await now(api)
    assert await page(api, before) == {"items": [], "next_cursor": before}
    far = f"{2**63 - 1}.{2**63 - 1}"
    assert await page(api, far) == {"items": [], "next_cursor": far}


@pytest.mark.parametrize(
    "query",
    ["after=", "after=x", "after=1", "after=1.", "after=.1", "after=-1.0", "after=1.2.3",
     "after=1.%F0%9D%9F%8F", f"after={2**63}.0", f"after=0.{2**63}", "after=NOW", "after=%00",
     "after=" + "1" * 50, "limit=0", "limit=1001", "limit=x", "cursor=0.0", "after=0.0&after=0.0"],
)  # fmt: skip
async def test_what_is_no_cursor_is_refused(api: World, query: str) -> None:
    assert (await api.http.get(f"/v1/events?{query}")).status_code == 422
    refused = await api.http.get(f"/v1/events?{query}", headers=LIVE)
    assert refused.status_code == 422


@pytest.mark.parametrize("last", ["x", "7", "0.0.0", "9" * 60])
async def test_what_is_no_last_event_id_is_refused(api: World, last: str) -> None:
    answer = await api.http.get("/v1/events", headers={**LIVE, "Last-Event-ID": last})
    assert answer.status_code == 422


async def test_a_live_feed_goes_on_as_things_happen(api: World) -> None:
    async with live(api, "now") as events:
        ((start, nothing),) = await take(events, 1)
        assert nothing is None, "the cursor to come back with, before the first entry"
        job = await api.finished()
        seen = await take(events, 3)
        assert [place(entry) for _, entry in seen] == [(job["id"], seq) for seq in range(3)]
        assert [entry for _, entry in seen] == (await page(api, start))["items"]
        other = await api.finished()
        assert [place(entry) for _, entry in await take(events, 3)] == [
            (other["id"], seq) for seq in range(3)
        ]


async def test_a_live_feed_rings_and_does_not_wait_for_its_look(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "LOOK_EVERY", 60)
    async with live(api, "now") as events:
        await take(events, 1)
        job = await api.finished()
        assert len(await take(events, 3)) == 3
        assert job["status"] == "succeeded"


async def test_what_another_process_wrote_is_seen_without_a_ring(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "LOOK_EVERY", 0.05)
    async with live(api, "now") as events:
        await take(events, 1)
        with monkeypatch.context() as patch:
            patch.setattr(api.app.runtime.bus, "watchers", [])
            await api.finished()
            assert len(await take(events, 3)) == 3


async def test_a_live_feed_is_resumed_where_it_broke_off(api: World) -> None:
    before = await now(api)
    jobs = [await api.finished() for _ in range(3)]
    await given(api)
    wanted = [place(e) for e in (await page(api, before))["items"]]
    assert len(wanted) == 3 * len(jobs)
    found: list[Place] = []
    last: str | None = None
    while len(found) < len(wanted):
        async with live(api, before, last) as events:
            await take(events, 1)
            for cursor, entry in await take(events, min(2, len(wanted) - len(found))):
                found.append(place(entry))
                last = cursor
    assert found == wanted


async def test_more_than_a_page_comes_live_whole(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "PAGE", 4)
    before = await now(api)
    await asyncio.gather(*(api.finished() for _ in range(5)))
    async with live(api, before) as events:
        seen = [place(entry) for _, entry in await take(events, 16) if entry]
    assert len(set(seen)) == 15


async def test_a_feed_that_is_left_leaves_nothing_behind(api: World) -> None:
    watchers = api.app.runtime.bus.watchers
    before = list(watchers)
    async with live(api, "now") as events:
        await take(events, 1)
        async with asyncio.timeout(PATIENCE):
            while not (own := [w for w in watchers if w not in before]):
                await asyncio.sleep(0.005)
    async with asyncio.timeout(PATIENCE):
        while own[0] in watchers:
            await asyncio.sleep(0.005)


async def test_many_writers_at_once_leave_no_gap_for_a_reader(api: World) -> None:
    before = await now(api)
    found: list[Place] = []

    async def read() -> None:
        after = before
        while len(found) < 90:
            said = await page(api, after, 7)
            found.extend(map(place, said["items"]))
            after = said["next_cursor"]
            await asyncio.sleep(0.002)  # or it would keep the one processor for itself

    async with asyncio.timeout(4 * PATIENCE):
        _, *jobs = await asyncio.gather(read(), *(api.finished(input=i) for i in range(30)))
    assert len(found) == len(set(found)) == 90
    assert set(found) == {(job["id"], seq) for job in jobs for seq in range(3)}


async def test_a_position_reads_what_it_writes() -> None:
    for at in (Position(0, 0), Position(1, 2), Position(2**63 - 1, 2**63 - 1)):
        assert Position.read(str(at)) == at
    assert Position.read("²." + "1") is None
