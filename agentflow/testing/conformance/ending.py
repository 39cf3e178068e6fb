"""Checks of whole jobs, by the real application on loopback: how they end, and that they do."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from agentflow.core.events import Canceled, Succeeded
from agentflow.core.language import ModelReply
from agentflow.errors import ProviderFailure
from agentflow.testing.conformance.attempts import kind, said
from agentflow.testing.conformance.loop import in_loop, until
from agentflow.testing.conformance.order import Ends, Order, check_end
from agentflow.testing.conformance.subject import Subject
from agentflow.testing.conformance.world import World
from agentflow.types import JsonObject


class Ending(Subject):
    @in_loop
    async def test_every_order_ends_as_it_says(self, order: Order) -> None:
        """With its result, its error, its files in custody, all of them."""
        ways = [Ends(order.input, "succeeded", None, order.result), *order.ends]
        async with self.world() as world:
            jobs = [await world.submit(order.task, way.input) for way in ways]
            for way, id in zip(ways, jobs, strict=True):
                job = await world.end(id)
                check_end(job, way)
                if way.status == "succeeded":
                    await self._kept(world, job, order)

    @in_loop
    async def test_it_ends_the_same_without_webhooks(self, late: Order) -> None:
        """A laptop has no public URL, and webhooks get lost: polling must do."""
        if self.task(late).fetcher is None:
            pytest.skip(f"{late.task} has no fetch: without webhooks nobody can tell")
        ways = [Ends(late.input, "succeeded", None, late.result), *late.ends]
        async with self.world(webhooks=False) as world:
            jobs = [await world.submit(late.task, way.input) for way in ways]
            for way, id in zip(ways, jobs, strict=True):
                check_end(await world.end(id), way)

    @in_loop
    async def test_a_server_without_webhooks_or_keys_for_them_leaves_no_job_open(
        self, late: Order
    ) -> None:
        """Where the end cannot be heard of, the task ends with what it knows."""
        keys = {self.webhook_setting: ""} if self.webhook_setting else {}
        async with self.world(webhooks=False, variables=keys) as world:
            job = await world.run(late.task, late.input)
            assert job["status"] == "succeeded", f"it is {job['status']}: {job['error']}"

    @in_loop
    async def test_a_refused_input_reaches_nobody(self, order: Order) -> None:
        """422 with the place of the fault, and nothing is asked of the provider."""
        async with self.world() as world:
            for bad in [*order.refused, "text", None]:
                body = {
                    "task": f"{self.provider.name}.{order.task}",
                    "input": await world.with_files(bad),
                }
                answer = await world.http.post("/v1/jobs", json=body)
                assert answer.status_code == 422, f"{bad!r} is answered {answer.status_code}"
            assert world.sim.stats.counts["asked"] == 0

    @in_loop
    async def test_two_jobs_do_not_know_each_other(self, order: Order) -> None:
        async with self.world() as world:
            ids = [await world.submit(order.task, order.input) for _ in range(5)]
            jobs = [await world.end(id) for id in ids]
            for job in jobs:
                check_end(job, Ends(order.input, "succeeded", None, order.result))
            about = [job["external_id"] for job in jobs if job["external_id"]]
            assert len(set(about)) == len(about), "two jobs have one external id"

    @in_loop
    async def test_a_canceled_job_is_stopped_at_the_provider(self, slow: Order) -> None:
        async with self.world() as world:
            id = await world.submit(slow.task, slow.slow)
            await world.until(id, "waiting", "running")
            what = "the provider's id is not known"
            await until(lambda: world.job(id), lambda job: job["external_id"], 5.0, what)
            await world.http.post(f"/v1/jobs/{id}/cancel")
            job = await world.end(id, 8.0)
            assert job["status"] == "canceled", f"canceled, it is {job['status']}: {job['error']}"
            assert job["reason"] != "cancel_unconfirmed", "the provider did not confirm the cancel"
            async with self.attempts_on(world) as attempts:
                task = self.task(slow)
                if task.fetcher is not None:
                    state = await attempts.fetch(task, job["external_id"], slow.slow)
                    assert isinstance(state, Canceled), f"at the provider it is {said(state)}"

    @in_loop
    async def test_a_cancel_that_races_the_end_ends_one_way(self, late: Order) -> None:
        async with self.world() as world:
            ids = [await world.submit(late.task, late.input) for _ in range(8)]
            for number, id in enumerate(ids):
                await asyncio.sleep(0.02 * number)
                await world.http.post(f"/v1/jobs/{id}/cancel")
            for id in ids:
                job = await world.end(id, 25.0)
                assert job["status"] in ("succeeded", "canceled"), (
                    f"canceled at its end, it is {job['status']}: {job['error']}"
                )

    @in_loop
    async def test_a_rate_limit_is_waited_out(self, order: Order) -> None:
        async with self.world() as world:
            world.sim.faults.update(rate_limit=1, rate_limit_seconds=0.2)
            job = await world.run(order.task, order.input)
            assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]

    @in_loop
    async def test_what_the_provider_dropped_is_lost(self, late: Order) -> None:
        """Asked for a result it no longer keeps, `fetch` says so; it would be asked for ever."""
        task = self.task(late)
        if task.fetcher is None:
            pytest.skip(f"{task.name} has no fetch")
        async with self.world() as world:
            job = await world.run(late.task, late.input)
            try:
                world.sim.forget()
            except NotImplementedError:
                pytest.skip("the simulator has no forget()")
            async with self.attempts_on(world) as attempts:
                state = await attempts.fetch(task, job["external_id"], late.input)
                assert kind(state) == "result_lost", f"fetch says {said(state)}"

    @in_loop
    async def test_what_never_was_is_no_success(self, late: Order) -> None:
        """`fetch` of an id that is none, with characters a URL gives a meaning to: what a stranger
        calls an id must not lead to another place of the provider's."""
        task = self.task(late)
        if task.fetcher is None:
            pytest.skip(f"{task.name} has no fetch")
        async with self.attempts() as attempts:
            for id in ("nobodys", "../..", "a/b?c=d", "é", "x" * 255):
                fetched = asyncio.ensure_future(attempts.fetch(task, id, late.input))
                await asyncio.wait([fetched])
                error = fetched.exception()
                known = (ProviderFailure, ValueError, httpx.HTTPError, type(None))
                assert isinstance(error, known), f"fetch({id!r}) raises {error!r}"
                success = error is None and isinstance(fetched.result(), Succeeded)
                assert not success, f"fetch({id!r}) is a success"
                for target in attempts.sim.stats.targets:
                    assert "c=d" not in target.partition("?")[2].split("&"), (
                        f"fetch({id!r}) asks for {target}: quote(external_id, safe='') where it"
                        " becomes part of a path"
                    )

    async def _kept(self, world: World, job: JsonObject, order: Order) -> None:
        if self.task(order).kind == "model":
            ModelReply.model_validate(job["result"]["output"])
        for file in job["result"]["artifacts"]:
            assert file["status"] == "stored", f"the file {file['name']} is {file['note']}"
            answer = await world.http.get(f"/v1/artifacts/{file['id']}")
            assert answer.content, f"the file {file['name']} is empty"
        for name, count in job["result"]["usage"].items():
            assert isinstance(count, int | float), f"usage.{name} is {count!r}, not a number"
            assert count >= 0, f"usage.{name} is {count}"
