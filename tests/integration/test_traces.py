"""One job, one trace: from the request through claim, call and webhook to the last commit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from opentelemetry.trace import SpanKind
from support.fakes import Fake, deliver, rows, running, until
from support.patience import PATIENCE
from support.serving import Served, replicate_world
from support.tracing import Spans, recording, trace_id

from agentflow import AgentFlow, JobSpec, Result
from agentflow.telemetry import traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ORDER = {
    "task": "replicate.predict",
    "input": {"model": "acme/painter", "input": {"prompt": "S3CRET"}},
}


async def finished(world: Served, headers: dict[str, str]) -> Any:
    job = (await world.http.post("/v1/jobs", json=ORDER, headers=headers)).json()
    view = (await world.http.get(f"/v1/jobs/{job['id']}?wait=20")).json()
    assert view["status"] == "succeeded", view
    return view


async def has(spans: Spans, *names: str) -> None:
    """The writer tells of a commit a moment after those who wait for it."""
    async with asyncio.timeout(PATIENCE):
        while not set(names) <= set(spans.names):
            await asyncio.sleep(0.005)


async def test_one_trace_follows_a_job_to_its_end(tmp_path: Path) -> None:
    with recording() as spans:
        async with replicate_world(tmp_path) as world:
            job = await finished(world, {"traceparent": PARENT})
            steps = ("claim", "call", "collect")
            await has(
                spans, "POST /v1/jobs", *(f"{step} replicate.predict" for step in steps),
                "webhook replicate", "apply started", "apply accepted", "apply succeeded",
                "apply collected",
            )  # fmt: skip
    assert {trace_id(span) for span in spans.all} == {PARENT[3:35]}
    request, call = spans.named("POST /v1/jobs"), spans.named("call replicate.predict")
    assert f"{request.parent.span_id:016x}" == PARENT[36:52]
    assert call.parent.span_id == request.context.span_id
    assert (request.kind, call.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert dict(call.attributes) == {
        "job.id": job["id"], "attempt": 1, "task": "replicate.predict", "outcome": "accepted",
    }  # fmt: skip
    done = spans.named("apply succeeded")
    assert done.attributes["reason"] == "collecting"
    assert spans.named("apply collected").attributes["status"] == "succeeded"
    webhooks = [s.context for s in spans.all if s.name == "webhook replicate"]
    assert done.links[0].context.span_id in {context.span_id for context in webhooks}
    order = [request.start_time, call.start_time, webhooks and done.start_time, done.end_time]
    assert order == sorted(order)


async def test_no_span_holds_an_input_a_key_or_a_token(tmp_path: Path) -> None:
    with recording() as spans:
        async with replicate_world(tmp_path) as world:
            job = await finished(world, {})
            await has(spans, "apply collected")
            found = await rows('SELECT "token", "nonce" FROM "agentflow_attempts"')
    text = "".join(span.to_json() for span in spans.all)
    assert job["id"] in text
    for secret in ("S3CRET", "r8_test", "whsec", found[0]["token"], found[0]["nonce"]):
        assert secret not in text


async def test_a_job_of_the_application_joins_the_span_it_was_submitted_in(tmp_path: Path) -> None:
    fake = Fake()
    with recording() as spans:
        async with running(tmp_path, fake) as app:
            with traces.span("the application's own"):
                job = await app.submit("fake.work", {})
            await until(app, job.id, "waiting")
            await has(spans, "call fake.work", "apply accepted")
    assert len({trace_id(span) for span in spans.all}) == 1
    assert spans.named("submit fake.work").kind is SpanKind.PRODUCER


async def test_what_a_handler_starts_belongs_to_the_same_trace(tmp_path: Path) -> None:
    fake = Fake()
    app = AgentFlow(providers=[fake.provider], plugins=[])
    fake.answers[1] = Result(output="first")

    @app.on("fake.work", "succeeded")
    async def more(event: Any, tx: Any) -> JobSpec:
        return JobSpec("fake.work", {"n": 2})

    with recording() as spans:
        async with running(tmp_path, fake, app=app):
            await app.submit("fake.work", {"n": 1})
            async with asyncio.timeout(PATIENCE):
                while len(fake.calls) < 2:
                    await asyncio.sleep(0.005)
            traced = await rows('SELECT "trace" FROM "agentflow_jobs"')
    assert len({row["trace"][3:35] for row in traced}) == 1
    assert len(traced) == 2
    assert {trace_id(span) for span in spans.all} == {traced[0]["trace"][3:35]}


async def test_without_an_sdk_nothing_is_stored_but_what_a_client_says(tmp_path: Path) -> None:
    async with replicate_world(tmp_path) as world:
        await world.http.post("/v1/jobs", json=ORDER)
        assert [row["trace"] for row in await rows('SELECT "trace" FROM "agentflow_jobs"')] == [
            None
        ]
        await world.http.post("/v1/jobs", json=ORDER, headers={"traceparent": PARENT})
        kept = {row["trace"] for row in await rows('SELECT "trace" FROM "agentflow_jobs"')}
        assert kept == {None, PARENT}


async def test_an_attempts_work_is_done_within_its_span(tmp_path: Path) -> None:
    """So that the spans of an instrumented HTTP client lie within it."""
    fake, seen = Fake(), []
    app = AgentFlow(providers=[fake.provider], plugins=[])

    @app.task("own.look")
    def look(call: Any, input: Any) -> str:
        seen.append(traces.current())
        return "seen"

    with recording() as spans:
        async with running(tmp_path, fake, app=app):
            await (await app.submit("own.look"))
            await has(spans, "call own.look")
    assert seen[0][36:52] == f"{spans.named('call own.look').context.span_id:016x}"


async def test_a_repeated_delivery_makes_no_second_commit(tmp_path: Path) -> None:
    fake = Fake()
    with recording() as spans:
        async with running(tmp_path, fake) as app:
            job = await app.submit("fake.work", {})
            await until(app, job.id, "waiting")
            body = b'[{"id": "ext-%s-1", "event": "succeeded"}]' % job.id.encode()
            body = body.replace(b'"}', b'", "fields": {"result": {"output": 1}}}')
            for id in ("one", "two"):
                await deliver(app, body, id=id)
            await has(spans, "apply succeeded")
            await app.runtime.writer.settled()
    assert spans.names.count("apply succeeded") == 1
