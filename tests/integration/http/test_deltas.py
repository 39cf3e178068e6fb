"""What a running call says comes live, whole where it can and with its gaps where not; in one
process, and with Redis between the parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
from pydantic import SecretStr
from support.keyed import bearer, new
from support.patience import PATIENCE
from support.poet import Heard, Poet, hear, listening
from support.servers import RedisServer
from support.web import World, world

from agentflow import AgentFlow, InvalidInput, Unavailable
from agentflow.store import queries
from agentflow.web import live

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT, LOGS = (1, "text"), (1, "logs")


class Stage:
    def __init__(self, api: World, poet: Poet) -> None:
        self.api, self.poet = api, poet

    async def begin(self, **input: Any) -> tuple[str, str]:
        """A job whose call runs and waits for its lines; its id and its name."""
        name = self.api.name("poem")
        job = await self.api.submit("poet.recite", {"name": name, **input})
        await self.api.until(job["id"], "running")
        return job["id"], name

    async def heard(self, first: str) -> tuple[str, str, Heard]:
        """A job whose first line a client has heard before it went away."""
        job, name = await self.begin()
        heard = Heard()
        async with asyncio.timeout(PATIENCE), listening(self.http, job, heard) as messages:
            self.poet.tell(name, first)
            async for _ in messages:
                if heard.text[TEXT]:
                    break
        return job, name, heard

    @property
    def http(self) -> httpx.AsyncClient:
        return self.api.http


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    tmp_path_factory: pytest.TempPathFactory,
    module_database: str | None,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Stage]:
    """On SQLite in one process; on PostgreSQL with all that is said going through Redis."""
    options: dict[str, Any] = {}
    if module_database is not None:
        server: RedisServer = request.getfixturevalue("redis_server")
        server.start()
        server.flush()
        options["redis_url"] = SecretStr(server.url())
    poet = Poet()
    app = AgentFlow(providers=[poet.provider], plugins=[])
    folder: Path = tmp_path_factory.mktemp("deltas")
    async with world(folder, app=app, live_text=64 * 1024, **options) as api:
        yield Stage(api, poet)
        for lines in poet.lines.values():
            lines.put_nowait(None)


async def test_what_a_call_says_comes_live_between_the_entries(stage: Stage) -> None:
    job, name = await stage.begin()
    async with asyncio.timeout(PATIENCE), listening(stage.http, job) as messages:
        heard = Heard()
        stage.poet.tell(name, "Once ")
        async for heard in messages:
            if heard.text[TEXT]:
                break
        assert heard.text[TEXT] == "Once "
        stage.poet.tell(name, "upon ", ("logs", "thinking\n"), "a time", None)
        async for _ in messages:
            pass
    assert heard.text == {TEXT: "Once upon a time", LOGS: "thinking\n"}
    assert (heard.gaps, heard.order[-1]) == ([], "succeeded")
    view = await stage.api.job(job)
    assert view["result"]["text"] == heard.text[TEXT]
    assert heard.history == list(range(view["version"]))


async def test_the_events_are_as_the_document_says(stage: Stage) -> None:
    job, name = await stage.begin()
    stage.poet.tell(name, "abc", None)
    await stage.api.until(job, "succeeded")
    headers = {"Accept": "text/event-stream"}
    answer = await stage.http.get(f"/v1/jobs/{job}/events", headers=headers)
    page = stage.api.contract.page["paths"]["/v1/jobs/{id}/events"]["get"]
    shapes = page["responses"]["200"]["content"]["text/event-stream"]["x-event-data"]
    assert shapes.keys() == {"delta", "gap", "*"}
    for block in answer.text.replace("\r", "").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            shape = shapes.get(fields["event"], shapes["*"])["$ref"].rsplit("/", 1)[1]
            stage.api.contract.validate(orjson.loads(fields["data"]), shape)


async def test_all_of_it_comes_before_the_end_also_for_who_comes_late(stage: Stage) -> None:
    job, name = await stage.begin()
    first = asyncio.create_task(hear(stage.http, job))
    stage.poet.tell(name, *(f"{n} " for n in range(500)), None)
    await stage.api.until(job, "succeeded")
    later = await hear(stage.http, job)
    for heard in (await first, later):
        assert heard.text[TEXT] == "".join(f"{n} " for n in range(500))
        assert (heard.gaps, heard.order[-1]) == ([], "succeeded")


async def test_who_joins_in_the_middle_has_the_text_from_its_start(stage: Stage) -> None:
    job, name = await stage.begin()
    async with asyncio.timeout(PATIENCE), listening(stage.http, job) as messages:
        stage.poet.tell(name, "from the start, ")
        async for heard in messages:
            if heard.text[TEXT]:
                break
        joined = asyncio.create_task(hear(stage.http, job))
        stage.poet.tell(name, "to the end", None)
        assert (await joined).text[TEXT] == "from the start, to the end"


async def test_a_stream_taken_up_again_and_again_misses_and_repeats_nothing(stage: Stage) -> None:
    job, name = await stage.begin()
    heard = Heard()
    for n in range(8):
        async with asyncio.timeout(PATIENCE), listening(stage.http, job, heard) as messages:
            stage.poet.tell(name, f"line {n}, ", ("logs", f"log {n}, "))
            async for _ in messages:
                if heard.text[TEXT].endswith(f"line {n}, "):
                    break
        stage.poet.tell(name, f"unheard {n}, ")
    stage.poet.tell(name, None)
    await hear(stage.http, job, heard)
    assert heard.text[TEXT] == "".join(f"line {n}, unheard {n}, " for n in range(8))
    assert heard.text[LOGS] == "".join(f"log {n}, " for n in range(8))
    assert heard.gaps == []
    assert heard.history == list(range((await stage.api.job(job))["version"]))


async def test_who_resumes_after_an_entry_of_the_history_repeats_nothing(stage: Stage) -> None:
    """The entry's id is its seq as ever; an event without data says the rest."""
    job, name = await stage.begin()
    heard = Heard()
    async with asyncio.timeout(PATIENCE), listening(stage.http, job, heard) as messages:
        stage.poet.tell(name, "before ", Unavailable("again"))
        async for _ in messages:
            if "failed" in heard.order and ":" in str(heard.last_id):
                break
    assert heard.last_id == f"{heard.history[-1]}:1.7.0"
    stage.poet.tell(name, "after", None)
    await hear(stage.http, job, heard)
    assert heard.text == {TEXT: "before ", (2, "text"): "after"}


async def test_beyond_the_window_what_is_missing_is_said(stage: Stage) -> None:
    job, name, heard = await stage.heard("start ")
    flood = ["x" * 1000] * 300
    stage.poet.tell(name, *flood, " end", None)
    await stage.api.until(job, "succeeded")
    await hear(stage.http, job, heard)
    whole = "start " + "".join(flood) + " end"
    got, (gap,) = heard.text[TEXT], heard.gaps
    assert len(got) == len(whole)
    assert got.endswith(" end")
    assert gap["offset"] == 6
    assert gap["missing"] == got.count("_") > 200_000
    assert (await stage.api.job(job))["result"] is not None


async def test_a_text_whose_end_was_not_heard_says_that_nobody_knows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, name, heard = await stage.heard("half a poem")
    outlet: Any = stage.api.app.runtime.worker.tools.outlet
    send = outlet.send
    monkeypatch.setattr(outlet, "send", lambda piece: None if piece.end else send(piece))
    stage.poet.tell(name, None)
    await hear(stage.http, job, heard)
    assert heard.text[TEXT] == "half a poem"
    assert [(gap["offset"], gap["missing"]) for gap in heard.gaps] == [(11, None)]
    assert heard.order[-1] == "succeeded"


async def test_a_new_attempt_is_told_apart(stage: Stage) -> None:
    job, name = await stage.begin()
    following = asyncio.create_task(hear(stage.http, job))
    stage.poet.tell(name, "a false start", Unavailable("again"))
    await asyncio.sleep(0.3)
    stage.poet.tell(name, "the poem", None)
    heard = await following
    assert heard.text == {TEXT: "a false start", (2, "text"): "the poem"}
    assert heard.gaps == []
    assert (await stage.api.job(job))["result"]["text"] == "the poem"


async def test_a_call_that_fails_has_said_what_it_said(stage: Stage) -> None:
    job, name = await stage.begin()
    stage.poet.tell(name, "half a", InvalidInput("no"))
    heard = await hear(stage.http, job)
    assert heard.text[TEXT] == "half a"
    assert (heard.gaps, heard.order[-1]) == ([], "failed")


async def test_a_plain_function_speaks_from_its_thread(stage: Stage) -> None:
    job = await stage.api.submit("poet.shout", {"name": "x"})
    heard = await hear(stage.http, job["id"])
    assert heard.text[TEXT] == (await stage.api.job(job["id"]))["result"]["text"]


async def test_who_wants_none_gets_none(stage: Stage) -> None:
    job, name = await stage.begin()
    following = asyncio.create_task(hear(stage.http, job, query="?deltas=false"))
    stage.poet.tell(name, "unheard", None)
    heard = await following
    assert set(heard.order).isdisjoint({"delta", "gap"})
    assert heard.last_id == str(heard.history[-1])
    answer = await stage.http.get(f"/v1/jobs/{job}/events?deltas=maybe")
    assert answer.status_code == 422


async def test_no_piece_costs_a_look_at_the_database(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    read = live.queries.get_job

    async def get_job(*args: Any) -> Any:
        looks.append(args[1])
        return await read(*args)

    job, name = await stage.begin()
    monkeypatch.setattr(live.queries, "get_job", get_job)
    async with asyncio.timeout(PATIENCE), listening(stage.http, job) as messages:
        async for heard in messages:
            if heard.history[-1:] == [1]:
                break
        entries, before = await queries.history("default", job, -1, 99), looks.count(job)
        for n in range(20):
            stage.poet.tell(name, f"{n} ")
            async for heard in messages:
                if heard.text[TEXT].endswith(f"{n} "):
                    break
        assert len([e for e in heard.order if e == "delta"]) == 20
        assert looks.count(job) - before <= 1, "it is looked at now and then all the same"
        assert await queries.history("default", job, -1, 99) == entries
    stage.poet.tell(name, None)


async def test_a_slow_client_holds_nobody_up(stage: Stage) -> None:
    """It reads nothing at all; the others hear everything, and its memory is nobody's."""
    job, name = await stage.begin()
    head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
    port = stage.api.server.servers[0].sockets[0].getsockname()[1]
    _, slow = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    slow.write(head.encode())
    try:
        quick = asyncio.create_task(hear(stage.http, job))
        for n in range(1000):
            stage.poet.tell(name, f"{n:05} " * 100)
            if n % 20 == 0:
                await asyncio.sleep(0.01)
        stage.poet.tell(name, None)
        heard = await quick
        assert stage.api.app.runtime.context.live.window.size <= 2 * 64 * 1024
    finally:
        slow.transport.abort()
    missing = sum(gap["missing"] for gap in heard.gaps)
    assert len(heard.text[TEXT]) == 600_000
    assert heard.text[TEXT].count("_") == missing


async def test_a_client_that_goes_away_leaves_nothing(stage: Stage) -> None:
    job, name = await stage.begin()
    window = stage.api.app.runtime.context.live.window
    for n in range(5):
        async with asyncio.timeout(PATIENCE), listening(stage.http, job) as messages:
            stage.poet.tell(name, f"{n}")
            async for heard in messages:
                if heard.text[TEXT].endswith(f"{n}"):
                    break
    async with asyncio.timeout(PATIENCE):
        while window._bells:
            await asyncio.sleep(0.01)
    stage.poet.tell(name, None)


async def test_another_tenant_hears_nothing(stage: Stage) -> None:
    job, name = await stage.begin()
    stage.poet.tell(name, "a secret")
    stranger = bearer(await new("strangers"))
    headers = {**stranger, "Accept": "text/event-stream", "Last-Event-ID": "0:1.0.0"}
    answer = await stage.http.get(f"/v1/jobs/{job}/events", headers=headers)
    assert answer.status_code == 404
    stage.poet.tell(name, None)
