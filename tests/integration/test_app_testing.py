"""`agentflow.testing.app`: what an application's tests can rely on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from support.fakes import reasons

import agentflow.testing
from agentflow import (
    Accepted,
    AgentFlow,
    Artifact,
    Canceled,
    Changed,
    Delivery,
    Fact,
    Failed,
    InvalidInput,
    JobFailed,
    JobSpec,
    OutcomeUnknown,
    Policy,
    Progressed,
    Provider,
    ProviderError,
    RateLimited,
    Result,
    Succeeded,
    testing,
)
from agentflow.errors import NotFound, UsageError
from agentflow.testing.stand_ins import Trusting


class Drawing(BaseModel):
    prompt: str


def acme() -> Provider:
    """A provider with a parser, whose calls would cost something."""
    provider = Provider("acme", webhooks="account", scheme=Trusting())

    @provider.task("draw", input=Drawing, policy=Policy(deadline=100))
    async def draw(call: Any, input: Drawing) -> Any:
        raise AssertionError("the real one is never called")

    @provider.parse
    def parse(delivery: Delivery) -> list[Fact]:
        return [Fact(Succeeded(Result(text=delivery.json["text"])), delivery.json["id"])]

    return provider


def test_the_package_offers_what_it_names_and_no_more() -> None:
    offered = ["HERE", "Ends", "Order", "PluginConformance", "Simulator", "app"]
    assert offered == agentflow.testing.__all__
    assert all(hasattr(agentflow.testing, name) for name in offered)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        agentflow.testing.nothing  # noqa: B018


async def test_a_call_is_accepted_and_waits_for_what_the_test_delivers() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        job = await app.submit("replicate.predict", {"any": ["input", 1]})
        await t.settle()
        view = await job.status()
        assert view["status"] == "waiting"
        assert view["external_id"] == f"replicate.predict:{job.id}:1"
        await t.deliver(job, Progressed(fraction=0.5, message="half"))
        assert (await job.status())["progress"] == {"fraction": 0.5, "message": "half"}
        await t.deliver(job, Changed())
        await t.deliver(job, Succeeded(Result(output=1)))
        assert (await job).output == 1
        assert [e for e, _, _ in await reasons(job.id)][-1] == "succeeded"
        await t.deliver(job, Failed(ProviderError("late")))
        assert (await reasons(job.id))[-1] == ("failed", "ignored", "final")


async def test_a_job_is_named_by_its_handle_its_view_or_its_id() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        for _ in range(3):
            await app.submit("acme.draw", {})
        handle, view, id = app.job((await t.jobs())[0]["id"]), *(await t.jobs())[1:]
        await t.deliver(handle, Succeeded())
        await t.deliver(view, Canceled())
        await t.deliver(id["id"], Failed(ProviderError()))
        ends = [job["status"] for job in await t.jobs()]
        assert ends == ["succeeded", "canceled", "failed"]
        with pytest.raises(UsageError, match="There is no job job_0"):
            await t.deliver("job_0", Succeeded())


async def test_after_a_step_handlers_have_run_and_what_they_started_waits() -> None:
    app = AgentFlow()

    @app.on("acme.step", "succeeded")
    async def go_on(event: Any, tx: Any) -> Any:
        return [JobSpec("crm.count", n) for n in range(event.result.output)]

    @app.task("crm.count")
    async def count(call: Any, input: int) -> int:
        await asyncio.sleep(0.01)
        return input

    @app.on("crm.count", "succeeded")
    async def and_on(event: Any, tx: Any) -> Any:
        return JobSpec("acme.step", event.result.output)

    async with testing.app(app) as t:
        job = await app.submit("acme.step")
        await t.deliver(job, Succeeded(Result(output=5)))
        jobs = await t.jobs()
        assert [j["status"] for j in jobs] == ["succeeded"] * 6 + ["waiting"] * 5
        assert sorted(j["input"] for j in jobs[6:]) == list(range(5))


async def test_outcomes_are_scripted_ahead_in_order() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        t.script("acme.draw", Succeeded(Result(output=1)), {"two": 2}, Failed(ProviderError("3")))
        t.script("acme.draw", Accepted("four"), InvalidInput("five"))
        jobs = [await app.submit("acme.draw", {}) for _ in range(6)]
        await t.settle()
        assert (await jobs[0]).output == 1
        assert (await jobs[1]).output == {"two": 2}
        for job, said in ((jobs[2], "3"), (jobs[4], "five")):
            with pytest.raises(JobFailed, match=said):
                await job
        assert (await jobs[3].status())["external_id"] == "four"
        assert (await jobs[5].status())["status"] == "waiting", "the script is over"


async def test_time_passes_from_alarm_to_alarm() -> None:
    app = AgentFlow(policies={"acme.draw": {"deadline": 500, "backoff": 0.1}})
    order: list[Any] = []

    @app.on("*", "expired")
    @app.on("*", "succeeded")
    def note(event: Any, tx: Any) -> None:
        order.append((event.job.entity, event.kind))

    async with testing.app(app) as t:
        t.script("acme.later", 1)
        t.script("acme.draw", RateLimited(retry_after=30), RateLimited(retry_after=30), 1)
        await app.submit("acme.later", entity="n:delayed", delay=100)
        await app.submit("acme.draw", entity="n:retried")
        await app.submit("acme.draw", entity="n:forgotten")
        await t.advance(29)
        assert order == []
        await t.advance(1000)
        assert order == [
            ("n:retried", "succeeded"),
            ("n:delayed", "succeeded"),
            ("n:forgotten", "expired"),
        ]


async def test_an_unknown_outcome_waits_for_its_webhook_or_the_policy() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        t.script("acme.draw", OutcomeUnknown(), OutcomeUnknown())
        found, lost = await app.submit("acme.draw", {}), await app.submit("acme.draw", {})
        await t.settle()
        assert (await found.status())["phase"] == "submit_unknown"
        await t.deliver(found, Succeeded(Result(output=1)))
        await t.advance(300)
        assert (await found).output == 1
        with pytest.raises(JobFailed) as failed:
            await lost
        assert failed.value.error.kind == "outcome_unknown"


async def test_a_cancel_is_confirmed_by_the_stand_in() -> None:
    app = AgentFlow()
    async with testing.app(app) as t:
        job = await app.submit("acme.draw", {})
        await t.settle()
        await job.cancel()
        await t.settle()
        assert (await job.status())["status"] == "canceled"
        assert ("canceled", "applied", "canceled") in await reasons(job.id)


async def test_files_of_results_are_made_up_unless_the_test_says_otherwise() -> None:
    app = AgentFlow()
    transport = httpx.ASGITransport(app.asgi)
    async with (
        testing.app(app) as t,
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        t.files.update({"https://x.test/b": b"given", "https://x.test/c": None})
        job = await app.submit("acme.draw", {})
        urls = [f"https://x.test/{name}" for name in "abc"]
        await t.deliver(job, Succeeded(Result(artifacts=[Artifact(url) for url in urls])))
        files = (await job).artifacts
        assert [file.status for file in files] == ["stored", "stored", "lost"]
        kept = [(await http.get(f"/v1/artifacts/{file.id}")).content for file in files[:2]]
        assert kept == [b"the file at https://x.test/a", b"given"]


async def test_a_described_provider_keeps_its_inputs_policies_and_parser() -> None:
    app = AgentFlow(providers=[acme()])
    told = []

    @app.on_webhook("acme")
    def take(event: Any, tx: Any) -> None:
        told.append(event.delivery.delivery_id)

    async with testing.app(app) as t:
        with pytest.raises(InvalidInput, match="prompt"):
            await app.submit("acme.draw", {})
        with pytest.raises(InvalidInput, match="There is no task"):
            await app.submit("acme.paint", {})
        one = await app.submit("acme.draw", {"prompt": "a"})
        two = await app.submit("acme.draw", {"prompt": "b"})
        await t.settle()
        external_id = (await one.status())["external_id"]
        for _ in range(2):
            await t.webhook("acme", {"id": external_id, "text": "in its own words"}, id="d1")
        assert (await one).text == "in its own words"
        assert told == ["d1"]
        await t.advance(101)
        assert (await two.status())["status"] == "expired"


async def test_names_that_can_be_no_task_are_refused() -> None:
    app = AgentFlow(policies={"acme.draw": {"deadline": 5}})

    @app.task("crm.lookup")
    async def lookup(call: Any, input: Any) -> None: ...

    async with testing.app(app) as t:
        for name in ("draw", "Acme.draw", "acme.Draw", "acme.", "crm.look", ""):
            with pytest.raises(InvalidInput, match="There is no task"):
                await app.submit(name)
        with pytest.raises(NotFound):
            t.script("crm.look", 1)
        with pytest.raises(UsageError, match="it really runs"):
            t.script("crm.lookup", 1)
        job = await app.submit("crm.lookup")
        with pytest.raises(UsageError, match="no webhook is about it"):
            await t.deliver(job, Succeeded())


async def test_a_failing_handler_fails_the_test_once_with_its_traceback() -> None:
    app = AgentFlow()

    @app.on("acme.draw", "succeeded")
    async def broken(event: Any, tx: Any) -> None:
        raise ZeroDivisionError("in the handler")

    @app.on("acme.draw", "failed", after_commit=True)
    async def broken_later(event: Any) -> None:
        raise ZeroDivisionError("after the commit")

    async with testing.app(app) as t:
        one, two = await app.submit("acme.draw", {}), await app.submit("acme.draw", {})
        with pytest.raises(AssertionError, match="in the handler"):
            await t.deliver(one, Succeeded())
        await t.settle()
        with pytest.raises(AssertionError, match="after the commit"):
            await t.deliver(two, Failed(ProviderError()))
        with pytest.raises(AssertionError, match="after the commit"):
            await t.advance(10)
    async with testing.app(app, handlers_may_fail=True) as t:
        await t.deliver(await app.submit("acme.draw", {}), Succeeded())


async def test_what_never_comes_to_rest_is_named() -> None:
    app = AgentFlow()

    @app.task("crm.hang")
    async def hang(call: Any, input: Any) -> None:
        await asyncio.sleep(60)

    async with testing.app(app, patience=0.2) as t:
        job = await app.submit("crm.hang")
        with pytest.raises(TimeoutError, match=rf"{job.id} \(crm.hang\) is running"):
            await t.settle()


async def test_each_run_is_new_and_nothing_of_this_machine_matters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTFLOW_MAX_INPUT", "3")
    monkeypatch.setenv("AGENTFLOW_DATA_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("AGENTFLOW_HOST", "0.0.0.0")
    app = AgentFlow()
    for _ in range(2):
        async with testing.app(app) as t:
            await app.submit("acme.draw", {"longer": "than three bytes"})
            assert len(await t.jobs()) == 1
    async with testing.app(app, max_input=3) as t:
        with pytest.raises(InvalidInput, match="at most 3 bytes"):
            await app.submit("acme.draw", {"longer": "than three bytes"})
    assert list(tmp_path.iterdir()) == []
