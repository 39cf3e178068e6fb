"""The asynchronous client: it has what the blocking one has, and does it without blocking.

What both do over the same code is shown by the blocking one's tests beside these.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.patience import PATIENCE
from support.scripted import (
    DONE,
    JOB,
    Scripted,
    broken_stream,
    entry,
    hang_up,
    problem,
    say,
    stream,
)
from support.serving import replicate_world
from support.web import World, world

import agentflow.client as client_package
from agentflow.client import (
    AsyncClient,
    AsyncJob,
    Client,
    InvalidRequest,
    Job,
    JobFailed,
    JobRequest,
    JobTimeout,
    NotFound,
    ServerUnreachable,
    TooManyRequests,
    Unavailable,
    job,
)

PAGE = Path(__file__).parents[3] / "docs" / "client.md"


@pytest_asyncio.fixture
async def client(server: Scripted) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, repeats=4) as made:
        yield made


def methods(cls: type) -> dict[str, list[inspect.Parameter]]:
    return {
        name: list(inspect.signature(member).parameters.values())
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_both_clients_have_the_same_methods_with_the_same_arguments(one: type, other: type) -> None:
    assert methods(one) == methods(other)
    assert len(methods(one)) > 5


# -- against a script --------------------------------------------------------------------------


async def test_a_submit_is_repeated_under_one_key(server: Scripted, client: AsyncClient) -> None:
    server(problem(503), hang_up, problem(429), say(201, JOB))
    assert (await client.submit("a.b", {"x": 1})).id == "job_1"
    assert len(server.seen) == 4
    assert len({asked.headers["idempotency-key"] for asked in server.seen}) == 1


async def test_what_cannot_be_repeated_is_not(server: Scripted, client: AsyncClient) -> None:
    server(hang_up)
    with pytest.raises(ServerUnreachable):
        await client.replay("dlv_1")
    assert len(server.seen) == 1
    server(problem(429, retry_after="9"))
    with pytest.raises(TooManyRequests) as caught:
        await client.retry_many(dry_run=False)
    assert caught.value.retry_after == 9
    assert len(server.seen) == 1


async def test_a_pause_between_tries_blocks_nobody(server: Scripted) -> None:
    server(problem(429, retry_after="3"), say(200, JOB))
    async with AsyncClient(server.url) as client:
        asking = asyncio.create_task(client.job("job_1"))
        while not server.seen:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(1):
            for _ in range(20):
                await asyncio.sleep(0.001)
        assert not asking.done()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_broken_stream_goes_on_where_it_broke(
    server: Scripted, client: AsyncClient
) -> None:
    server(*broken_stream())
    job = await client.job("job_1")
    assert [event.seq async for event in job.events()] == [0, 1, 2, 3]
    assert [a.headers.get("last-event-id") for a in server.seen[1:]] == [None, "1", "1", "1"]


async def test_a_stream_that_never_says_anything_ends_in_an_error(server: Scripted) -> None:
    server(say(200, JOB))
    async with AsyncClient(server.url, retry_for=0.1) as client:
        job = await client.job("job_1")
        server(hang_up)
        with pytest.raises(ServerUnreachable):
            [event async for event in job.events()]
        server(problem(503))
        with pytest.raises(Unavailable):
            await job.refresh()


async def test_the_feed_goes_on_behind_its_cursor(server: Scripted, client: AsyncClient) -> None:
    server(stream(entry(0, id="c1")), stream(entry(1, id="c2")))
    found = []
    async with aclosing(client.feed("c0")) as feed:
        async for event in feed:
            found.append((event.cursor, event.job_id))
            if len(found) == 2:
                break
    assert found == [("c1", "job_1"), ("c2", "job_1")]
    assert [a.headers.get("last-event-id") for a in server.seen] == [None, "c1"]


async def test_progress_may_be_told_to_a_coroutine(
    server: Scripted, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "EAGER", 0.0)
    told: list[Any] = []

    async def hear(fraction: float | None, message: str | None) -> None:
        await asyncio.sleep(0)
        told.append((fraction, message))

    half = {"progress": {"fraction": 0.5, "message": "half"}}
    server(say(200, JOB), say(200, {**JOB, **half}), say(200, {**DONE, **half}))
    result = await (await client.job("job_1")).result(timeout=60, on_progress=hear)
    assert result.output == 1
    assert told == [(0.5, "half")]


async def test_lists_are_read_page_by_page_as_they_are_used(
    server: Scripted, client: AsyncClient
) -> None:
    server(
        say(200, {"items": [JOB, JOB], "next_cursor": "job_0"}),
        say(200, {"items": [DONE], "next_cursor": None}),
    )
    jobs = client.jobs(tag="x")
    await anext(jobs)
    assert len(server.seen) == 1
    assert [job.status async for job in jobs] == ["queued", "succeeded"]
    assert server.seen[1].line == "GET /v1/jobs?tag=x&limit=50&cursor=job_0"


async def test_many_are_submitted_and_each_has_its_outcome(
    server: Scripted, client: AsyncClient
) -> None:
    items = [
        {"index": 0, "status": 201, "job": JOB, "error": None},
        {"index": 1, "status": 422, "job": None, "error": {"title": "No"}},
    ]
    server(say(200, {"items": items, "created": 1, "repeated": 0, "refused": 1}))
    made, refused = await client.submit_many([{"task": "a.b"}, {"task": "a.c"}])
    assert isinstance(made, AsyncJob)
    assert isinstance(refused, InvalidRequest)


async def test_the_other_routes_are_asked(server: Scripted, client: AsyncClient) -> None:
    bulk = {"matched": 1, "done": 0, "ids": ["job_1"], "dry_run": True, "more": True}
    server(
        say(200, bulk),
        say(202, {"id": "cmd_1", "status": "applied"}),
        say(200, {"items": [{"target": "a"}], "next_cursor": None}),
        say(202, {"id": "cmd_2", "status": "applied"}),
        say(200, {"items": [], "next_cursor": "c1"}),
    )
    assert (await client.cancel_many(tag="x")).more
    assert (await client.pause("a"))["id"] == "cmd_1"
    assert await client.pauses() == [{"target": "a"}]
    assert (await client.resume("a"))["id"] == "cmd_2"
    assert (await client.feed_page()).cursor == "c1"
    assert [asked.line for asked in server.seen] == [
        "POST /v1/jobs/cancel", "POST /v1/pauses", "GET /v1/pauses", "DELETE /v1/pauses/a",
        "GET /v1/events?limit=1000",
    ]  # fmt: skip


async def test_a_download_is_whole_or_not_there(
    server: Scripted, client: AsyncClient, tmp_path: Path
) -> None:
    target = tmp_path / "out.png"
    server(say(200, b"half", content_length="8"), problem(404))
    with pytest.raises(NotFound):
        await client.download("art_1", target)
    assert list(tmp_path.iterdir()) == []
    server(say(200, b"whole"))
    assert (await client.download("art_1", target)).read_bytes() == b"whole"


async def test_a_closed_client_says_so(server: Scripted) -> None:
    server(say(200, JOB))
    async with AsyncClient(server.url) as client:
        job = await client.job("job_1")
    with pytest.raises(ServerUnreachable, match="closed"):
        await job.refresh()


# -- the page ----------------------------------------------------------------------------------

EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)


def test_the_page_names_every_method_and_error() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {*methods(Client), *methods(Job), *inspect.signature(Client).parameters}
    errors = {n for n in client_package.__all__ if _is_error(n)}
    assert len(errors) > 8
    assert [n for n in names | errors if not re.search(rf"[`.]{n}[`(]", text)] == ["__init__"]


def _is_error(name: str) -> bool:
    value = getattr(client_package, name)
    return isinstance(value, type) and issubclass(value, Exception)


async def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(EXAMPLES) == 4
    monkeypatch.chdir(tmp_path)
    async with replicate_world(tmp_path / "data") as served:
        for example in EXAMPLES:
            code = example.replace("http://127.0.0.1:8700", served.url)
            assert code != example
            await asyncio.to_thread(exec, code, {})
    assert (tmp_path / "lighthouse.png").stat().st_size > 0


# -- against a server of ours ------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(
    tmp_path_factory: pytest.TempPathFactory, module_database: str | None
) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("client")) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_is_submitted_followed_and_read(api: World) -> None:
    async with AsyncClient(api.url) as client:
        job = await client.submit("acme.echo", {"x": 1}, tags=["mine"], entity="shot:1")
        again = await client.submit("acme.echo", {"x": 1}, tags=["mine"], entity="shot:1")
        assert again.id != job.id
        events = [event async for event in job.events()]
        assert [events[0].event, events[-1].status] == ["submitted", "succeeded"]
        assert (await job.result(timeout=PATIENCE)).output == {"x": 1}
        assert [event.seq for event in await job.history()] == [event.seq for event in events]
        assert {j.id async for j in client.jobs(tag="mine", page=1)} == {job.id, again.id}
        second = await job.retry()
        assert second.data["retry_of"] == job.id


@pytest.mark.asyncio(loop_scope="module")
async def test_a_wait_ends_with_the_job_or_with_its_time(api: World) -> None:
    name = api.name()
    async with AsyncClient(api.url) as client:
        job = await client.submit("acme.draw", {"name": name})
        with pytest.raises(JobTimeout):
            await job.result(timeout=0.05)
        told: list[Any] = []
        waiting = asyncio.create_task(job.result(10, on_progress=lambda *said: told.append(said)))
        await api.until(job.id, "waiting")
        path = f"acme/{await api.token(job.id)}"
        await api.deliver(path, {"status": "on", "fraction": 0.5, "message": "half", "id": name})
        while not told:
            await asyncio.sleep(0.005)
        await api.deliver(path, {"status": "done", "output": 7, "id": name})
        assert (await waiting).output == 7
        assert told[0] == (0.5, "half")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_is_canceled_and_refused_as_the_server_says(api: World) -> None:
    async with AsyncClient(api.url) as client:
        job = await client.submit("acme.draw", {"name": api.name()}, delay=60)
        await job.cancel()
        with pytest.raises(JobFailed, match="canceled"):
            await job.result(timeout=PATIENCE)
        with pytest.raises(InvalidRequest) as caught:
            await client.submit("acme.draw", {"name": ""})
        assert caught.value.errors[0]["loc"] == "input.name"
        with pytest.raises(NotFound):
            await client.job("job_0")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_blocking_client_is_understood_too(api: World) -> None:
    def talk() -> Any:
        with Client(api.url) as client:
            job = client.submit("acme.echo", [1], metadata={"a": 1})
            assert [event.status for event in job.events()][-1] == "succeeded"
            return job.result(timeout=10, on_progress=print).output

    assert await asyncio.to_thread(talk) == [1]


@pytest.mark.asyncio(loop_scope="module")
async def test_the_feed_is_followed_from_a_cursor_of_the_server(api: World) -> None:
    async with AsyncClient(api.url) as client:
        before = (await client.feed_page("now")).cursor
        job = await client.submit("acme.echo", {})
        async with aclosing(client.feed(before)) as feed:
            heard = []
            async for event in feed:
                heard.append(event)
                if event.job_id == job.id and event.ends:
                    break
        [first, *_] = [event for event in heard if event.job_id == job.id]
        assert first.event == "submitted"
        page = await client.feed_page(first.cursor)
        assert job.id in {event.job_id for event in page.events}
        assert (job.id, "submitted") not in {(e.job_id, e.event) for e in page.events}


@pytest.mark.asyncio(loop_scope="module")
async def test_many_are_commanded_as_the_server_understands_it(api: World) -> None:
    async with AsyncClient(api.url) as client:
        many: list[JobRequest] = [
            {"task": "acme.echo", "input": 1, "tags": ["many"]},
            {"task": "acme.draw", "input": {"name": ""}},
            {"task": "acme.draw", "input": {"name": "far"}, "delay": 60, "tags": ["many"]},
        ]
        done, refused, far = await client.submit_many(many)
        assert isinstance(refused, InvalidRequest)
        assert isinstance(done, AsyncJob)
        assert isinstance(far, AsyncJob)
        assert (await done.result(timeout=10)).output == 1
        rehearsal = await client.cancel_many(tag="many")
        assert (rehearsal.ids, rehearsal.done) == ([far.id], 0)
        assert (await client.cancel_many(tag="many", dry_run=False)).done == 1
        with pytest.raises(JobFailed):
            await far.result(timeout=10)
        assert (await client.retry_many(tag="many", dry_run=False)).ids == [far.id]
        with pytest.raises(InvalidRequest):
            await client.cancel_many(dry_run=False)


@pytest.mark.asyncio(loop_scope="module")
async def test_budgets_are_set_listed_and_removed(api: World) -> None:
    async with AsyncClient(api.url) as client:
        await client.set_budget("9.50", per_call="1", tag="film", period="total")
        (made,) = await client.budgets()
        assert (made["cap"], made["tag"], made["left"]) == ("9.5", "film", "9.5")
        assert (await client.usage(group_by="tag", tag="film"))["items"] == []
        await client.remove_budget(made["id"])
        with pytest.raises(NotFound):
            await client.remove_budget(made["id"])
        with pytest.raises(TypeError, match="color"):
            await client.usage(color="red")  # type: ignore[call-arg]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_paused_is_listed_until_it_is_resumed(api: World) -> None:
    async with AsyncClient(api.url) as client:
        await client.pause("bank", note="the bill")
        assert [(p["target"], p["note"]) for p in await client.pauses()] == [("bank", "the bill")]
        await client.resume("bank")
        assert await client.pauses() == []
        with pytest.raises(NotFound):
            await client.resume("bank")
