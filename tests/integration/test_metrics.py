"""What `/metrics` counts, who may see it, and what the logs and `/readyz` say beside it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from support.fakes import Fake, rows, running, until
from support.keyed import bearer, new
from support.patience import PATIENCE
from support.web import World, serving, url_of, world

from agentflow import AgentFlow, Settings, SettingsError, logs
from agentflow.errors import InvalidInput
from agentflow.web import metrics as page

TOKEN = "a token of enough letters"
FAR = {"Host": "flow.example.com"}

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Numbers:
    return {
        (sample.name.removeprefix("agentflow_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def numbers(api: World) -> Numbers:
    answer = await api.http.get("/metrics")
    assert answer.status_code == 200
    return parsed(answer.text)


def number(found: Numbers, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


async def token_of(job: str) -> str:
    [found] = await rows(f"SELECT token FROM agentflow_attempts WHERE job_id = '{job}'")
    return str(found["token"])


# -- what is counted ---------------------------------------------------------------------------


async def test_a_jobs_life_is_counted_from_submit_to_webhook(tmp_path: Path) -> None:
    async with world(tmp_path) as api:
        job = await api.waiting()
        done = {"status": "done", "id": job["external_id"], "output": 1}
        path = f"acme/{await token_of(job['id'])}"
        for _ in range(2):
            await api.deliver(path, done, id="same")
        await api.deliver(path, done, key="whsec_" + "A" * 32)
        await api.until(job["id"], "succeeded")
        await api.app.runtime.writer.settled()
        found = await numbers(api)
    task = {"task": "acme.draw"}
    assert number(found, "jobs_submitted_total", **task) == 1
    for status, reason in (("running", "started"), ("waiting", "accepted")):
        assert number(found, "job_transitions_total", status=status, reason=reason, **task) == 1
    assert number(found, "job_transitions_total", status="succeeded", reason="succeeded", **task)
    assert number(found, "claims_total", answer="granted") == 1
    assert number(found, "call_seconds_count", outcome="accepted", **task) == 1
    for result in ("stored", "duplicate", "refused"):
        assert number(found, "webhook_deliveries_total", provider="acme", result=result) == 1
    assert number(found, "inbox_applied_total", kind="webhook", status="applied") == 1
    assert number(found, "events_heard_total", kind="claim") == 1
    assert number(found, "events_heard_total", kind="accepted") == 1
    assert number(found, "open_jobs", status="waiting") == 0
    assert (number(found, "writer_turn_seconds_count") or 0) >= 4
    assert number(found, "queue_length", queue="all") == 0
    assert number(found, "database_up") == 1
    assert number(found, "oldest_due_seconds") is not None


async def test_requests_are_counted_by_route_and_never_by_path(tmp_path: Path) -> None:
    async with world(tmp_path) as api:
        job = await api.finished()
        await api.http.get("/v1/jobs/job_none")
        await api.plain.get("/nothing/here")
        await api.plain.request("PROPFIND", "/healthz")
        answer = await api.http.get("/metrics")
    found = parsed(answer.text)
    assert number(found, "http_requests_total", route="/v1/jobs", method="POST", status="201") == 1
    one = {"route": "/v1/jobs/{id}", "method": "GET"}
    assert number(found, "http_requests_total", status="404", **one) == 1
    assert number(found, "http_requests_total", route="other", method="GET", status="404") == 1
    assert number(found, "http_requests_total", route="/healthz", method="other", status="405") == 1
    assert (number(found, "http_request_seconds_count", **one) or 0) >= 2
    for id in (job["id"], "job_none", "nothing/here", "PROPFIND"):
        assert id not in answer.text


async def test_a_failed_call_is_counted_by_the_kind_of_its_error(tmp_path: Path) -> None:
    fake = Fake()
    fake.answers[1] = InvalidInput("no")
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {"n": 1})
        await until(app, job.id, "failed")
        found = parsed(app.runtime.metrics.text().decode())
    labels = {"task": "fake.work", "outcome": "invalid_input"}
    assert number(found, "call_seconds_count", **labels) == 1


async def test_what_one_batch_counts_is_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that is rolled back and taken again part by part is counted once."""
    fake = Fake()
    async with running(tmp_path, fake) as app:
        commit = app.runtime.writer._commit
        failed = []

        async def broken(heard: Any, **options: Any) -> Any:
            done = await commit(heard, **options)
            if heard and not failed:
                failed.append(await rows("SELECT 1 AS one"))
                raise RuntimeError("after the commit of the first batch")
            return done

        monkeypatch.setattr(app.runtime.writer, "_commit", broken)
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        await app.runtime.writer.settled()
        found = parsed(app.runtime.metrics.text().decode())
    assert failed
    assert number(found, "writer_broken_batches_total") == 1
    labels = {"task": "fake.work", "status": "waiting", "reason": "accepted"}
    assert number(found, "job_transitions_total", **labels) == 1


async def test_scrapers_cost_the_database_a_question_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, Fake()) as app:
        asked: list[str] = []
        for name in ("oldest_due", "open_jobs"):
            where = page.queries if name == "oldest_due" else page
            question = getattr(where, name)

            async def counted(*args: Any, question: Any = question, name: str = name) -> Any:
                asked.append(name)
                return await question(*args)

            monkeypatch.setattr(where, name, counted)
        await asyncio.gather(*(app.runtime.gauges.text() for _ in range(10)))
        assert sorted(asked) == ["oldest_due", "open_jobs"]
        monkeypatch.setattr(page, "DUE_EVERY", 0.0)
        await app.runtime.gauges.text()
        assert sorted(asked) == ["oldest_due", "oldest_due", "open_jobs"]


async def test_open_jobs_are_told_by_status(tmp_path: Path) -> None:
    fake = Fake()
    async with running(tmp_path, fake) as app:
        await app.submit("fake.work", {}, delay=1000)
        jobs = [await app.submit("fake.work", {}) for _ in range(3)]
        for job in jobs:
            await until(app, job.id, "waiting")
        found = parsed((await app.runtime.gauges.text()).decode())
    told = {s: number(found, "open_jobs", status=s) for s in ("scheduled", "waiting", "running")}
    assert told == {"scheduled": 1, "waiting": 3, "running": 0}
    assert number(found, "open_jobs", status="succeeded") is None


# -- who may see it ----------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [True, False])
async def test_only_this_machine_the_token_and_operators_see_the_numbers(
    tmp_path: Path, closed: bool
) -> None:
    options = {"require_keys": closed, "metrics_token": SecretStr(TOKEN)}
    async with world(tmp_path, **options) as api, serving(api.app.asgi) as server:
        url = f"{url_of(server)}/metrics"
        keys = {scope: await new(scope=scope) for scope in ("read", "admin")}
        other = await new("elsewhere", "admin")
        async with httpx.AsyncClient() as http:

            async def status(**headers: str) -> int:
                return (await http.get(url, headers=headers)).status_code

            assert await status() == 200
            for far in (FAR, {"X-Forwarded-For": "203.0.113.7"}, {"Origin": "http://evil.test"}):
                assert await status(**far) == 403
                assert await status(**far, **bearer("wrong")) == 403
                assert await status(**far, **bearer(TOKEN)) == 200
                assert await status(**far, **bearer(keys["admin"])) == 200
                assert await status(**far, **bearer(keys["read"])) == 403
                assert await status(**far, **bearer(other)) == 403
                assert await status(**far, **bearer("af_000000000000_x")) == 401


async def test_without_a_token_an_empty_one_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrics_token"):
        Settings(metrics_token=SecretStr(""))
    async with world(tmp_path) as api:
        for given in ("", "Bearer", "Bearer None", "Basic x"):
            answer = await api.http.get("/metrics", headers=FAR | {"Authorization": given})
            assert answer.status_code == 403, given


# -- roles without a server --------------------------------------------------------------------


async def test_a_port_of_its_own_shows_numbers_and_health(tmp_path: Path) -> None:
    async with running(tmp_path, Fake(), metrics_port=0) as app:
        url = f"http://127.0.0.1:{app.runtime.metrics_port}"
        async with httpx.AsyncClient(base_url=url) as http:
            assert "agentflow_build_info" in (await http.get("/metrics")).text
            assert (await http.get("/healthz")).json()["status"] == "ok"
            assert (await http.get("/readyz")).json()["missing"] == []
            assert (await http.get("/v1/jobs")).status_code == 404
            assert (await http.get("/metrics", headers=FAR)).status_code == 403
        taken = AgentFlow(providers=[Fake().provider], plugins=[])
        again = running(tmp_path / "b", Fake(), app=taken, metrics_port=app.runtime.metrics_port)
        with pytest.raises(SettingsError, match="AGENTFLOW_METRICS_PORT"):
            async with again:
                pass
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


async def test_a_worker_says_that_redis_is_missing_and_asks_no_database(tmp_path: Path) -> None:
    """Nothing listens on port 1."""
    options = {"mode": "worker", "redis_url": SecretStr("redis://127.0.0.1:1/0")}
    async with running(tmp_path, Fake(), metrics_port=0, **options) as app:
        url = f"http://127.0.0.1:{app.runtime.metrics_port}"
        async with httpx.AsyncClient(base_url=url) as http:
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["missing"]) == (
                503,
                ["Redis cannot be reached"],
            )
            assert ready.json()["oldest_due_seconds"] is None
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = parsed((await http.get("/metrics")).text)
                    if number(found, "redis_outages_total") == 1:
                        break
                    await asyncio.sleep(0.05)
    assert number(found, "redis_up") == 0
    assert number(found, "database_up") is None
    assert number(found, "oldest_due_seconds") is None


async def test_readiness_names_the_migration_that_is_missing(tmp_path: Path) -> None:
    async with world(tmp_path) as api:
        await rows("DELETE FROM tortoise_migrations WHERE name = '0002_scale_out'")
        await rows("ALTER TABLE agentflow_inbox RENAME TO away")
        try:
            ready = await api.http.get("/readyz")
        finally:
            await rows("ALTER TABLE away RENAME TO agentflow_inbox")
        assert ready.status_code == 503
        assert ready.json()["missing"] == ["migration agentflow.0002_scale_out is not applied"]


async def test_readiness_tells_how_late_the_oldest_work_is(tmp_path: Path) -> None:
    async with world(tmp_path) as api:
        runtime = api.app.runtime
        await api.submit("acme.echo", {}, delay=60)
        ready = (await api.http.get("/readyz")).json()
        assert ready["oldest_due_seconds"] is None
        runtime.writer._alarms = False  # as if it had much to hear
        runtime.clock.advance(100)
        late = (await api.http.get("/readyz")).json()
        assert 30 < late["oldest_due_seconds"] < 60
        assert 30 < (number(await numbers(api), "oldest_due_seconds") or 0) < 60


# -- what the log says -------------------------------------------------------------------------


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY}
    stream = io.StringIO()
    logs.configure("INFO", stream=stream, form="json")
    yield stream
    structlog.configure(**config)
    root.handlers[:] = before
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def said(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_a_final_job_has_one_line_that_names_all(tmp_path: Path, out: io.StringIO) -> None:
    fake = Fake()
    fake.answers[1] = "done"
    async with running(tmp_path, fake) as app:
        job = await app.submit("fake.work", {"n": 1}, tenant="acme-corp")
        await job.result(PATIENCE)
        await app.runtime.writer.settled()
    [line] = [each for each in said(out) if each.get("job_id") == job.id]
    assert (line["event"], line["level"]) == ("Job succeeded", "info")
    assert (line["task"], line["attempt"], line["tenant"]) == ("fake.work", 1, "acme-corp")


async def test_what_a_task_logs_names_its_job(tmp_path: Path, out: io.StringIO) -> None:
    app = AgentFlow(providers=[Fake().provider], plugins=[])

    @app.task("own.talk")
    async def talk(call: Any, input: Any) -> None:
        structlog.get_logger("own").info("ours")
        logging.getLogger("lib").info("theirs")

    async with running(tmp_path, Fake(), app=app):
        job = await app.submit("own.talk")
        await job.result(PATIENCE)
    lines = [each for each in said(out) if each["event"] in ("ours", "theirs")]
    assert [(x["job_id"], x["attempt"], x["task"]) for x in lines] == [(job.id, 1, "own.talk")] * 2
