"""Checks of whole jobs whose webhooks come twice, early, late, forged or not at all."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from agentflow.testing.conformance.loop import in_loop, until
from agentflow.testing.conformance.order import Ends, Order, check_end
from agentflow.testing.conformance.subject import Subject
from agentflow.testing.conformance.world import World
from agentflow.types import JsonObject, new_id, utcnow

CROWD = 6


class Delivering(Subject):
    @pytest.mark.parametrize(
        "faults",
        [
            {"duplicate": True},
            {"reorder": 0.5, "delay": 0.3, "delay_seconds": 0.2},
            {"wrong_signature": 2},
        ],
        ids=["duplicate", "reordered", "forged"],
    )
    @in_loop
    async def test_webhooks_in_disorder_change_nothing(
        self, late: Order, faults: dict[str, Any]
    ) -> None:
        self.needs_webhooks()
        async with self.world() as world:
            world.sim.faults.update(faults)
            ids = [await world.submit(late.task, late.input) for _ in range(CROWD)]
            jobs = [await world.end(id) for id in ids]
            self._all_well(world, jobs)
            assert world.sim.stats.counts["webhooks_tried"], "the simulator sent no webhook"

    @in_loop
    async def test_a_webhook_before_the_answer_finds_its_job(self, late: Order) -> None:
        """Providers are faster than their own answer: the token in the URL, or an id that is
        parked until the answer names it. A thin one is remembered until there is an id to fetch
        by; each way of ending, since a webhook may be thin for one alone."""
        self.needs_webhooks()
        async with self.world() as world:
            world.sim.faults.update(webhook_before_response=True)
            job = await world.run(late.task, late.input)
            assert world.sim.stats.faults["webhook_before_response"], (
                "the simulator does not play webhook_before_response: ask self.hit() for it in the"
                " create, and wait for outbox.settled"
            )
            self._all_well(world, [job])
            await until(
                world.inbox,
                lambda rows: job["id"] in [row["job_id"] for row in rows],
                5.0,
                "the webhook has not found its job",
            )
            ids = [await world.submit(late.task, way.input) for way in late.ends]
            for way, id in zip(late.ends, ids, strict=True):
                check_end(await world.end(id), way, "its webhook before the answer")

    @in_loop
    async def test_a_lost_webhook_is_made_up_for_by_a_poll(self, late: Order) -> None:
        self.needs_webhooks()
        if self.task(late).fetcher is None:
            pytest.skip(f"{late.task} has no fetch")
        async with self.world(poll_after_webhook=0.3) as world:
            world.sim.faults.update(drop=True)
            ways = [Ends(late.input, "succeeded"), *late.ends]
            ids = [await world.submit(late.task, way.input) for way in ways]
            for way, id in zip(ways, ids, strict=True):
                check_end(await world.end(id), way, "without its webhook")

    @in_loop
    async def test_a_lost_answer_is_never_paid_for_twice(self, late: Order) -> None:
        """The webhook comes home by its token, `find` sees it, or the outcome stays unknown."""
        async with self.world() as world:
            world.sim.faults.update(reset=1)
            job = await world.run(late.task, late.input)
            assert world.sim.stats.counts["asked"] == 1, "it was created twice"
            known = job["error"]["kind"] if job["error"] else job["status"]
            wanted = {"succeeded", "outcome_unknown"}
            if self.takes_webhooks and self.provider.webhooks == "per_request":
                wanted = {"succeeded"}
            assert known in wanted, f"its answer lost, it ends as {known}"

    @in_loop
    async def test_a_lost_answer_is_found_again(self, late: Order) -> None:
        """By `find`, where there is one. A webhook with the token would do it alone, so none comes;
        one that names the work is what `find` may go by (`call.strays`)."""
        if self.task(late).finder is None:
            pytest.skip(f"{late.task} has no find")
        async with self.world(poll_after_webhook=0.3, unknown_checks=3) as world:
            # The answer hangs until another work was made, which is then the first to be seen.
            mute = self.provider.webhooks == "per_request"
            world.sim.faults.update(hang=1, hang_seconds=1.5, drop=mute)
            lost = await world.submit(late.task, late.input)
            counts = world.sim.stats.counts
            while not counts["asked"]:  # noqa: ASYNC110 - the simulator tells nobody
                await asyncio.sleep(0.02)
            other = await world.submit(late.task, late.input)
            jobs = [await world.end(id, 25.0) for id in (lost, other)]
            for job in jobs:
                assert job["status"] == "succeeded", f"find did not find it: {job['error']}"
            assert jobs[0]["external_id"] != jobs[1]["external_id"], "find gave another's work"
            assert counts["asked"] == 2, "something was created twice"

    @in_loop
    async def test_what_comes_after_the_end_changes_nothing(self, late: Order) -> None:
        """Every webhook once more, under a new id and signature: final is final."""
        self.needs_webhooks()
        async with self.world() as world:
            before = await world.run(late.task, late.input)
            await world.heard(1)
            for delivery in await world.deliveries():
                headers = world.sim.sign(new_id("msg"), utcnow(), delivery.body, False)
                answer = await world.deliver(delivery.body, headers, delivery.token)
                assert answer.status_code == 202, answer.text
            await world.app.runtime.writer.settled()
            after = await world.job(before["id"])
            assert (after["status"], after["result"]) == (before["status"], before["result"])
            rows = await world.inbox()
            failed = [row["error"] for row in rows if row["status"] == "failed"]
            assert not failed, f"a repeated webhook cannot be read: {failed}"

    @in_loop
    async def test_each_webhook_finds_its_own_job(self, late: Order) -> None:
        """Many at once: none is parked, none is nobody's, no fact goes to a neighbour."""
        self.needs_webhooks()
        async with self.world() as world:
            ids = [await world.submit(late.task, late.input) for _ in range(CROWD)]
            jobs = [await world.end(id) for id in ids]
            await asyncio.sleep(0.2)
            rows = await world.inbox()
            self._all_well(world, jobs)
            failed = [row["error"] for row in rows if row["status"] == "failed"]
            assert not failed, f"webhooks that cannot be read: {failed}"
            lost = [row["body"][:200] for row in rows if row["status"] == "parked"]
            assert not lost, f"webhooks that find no job: {lost}"
            told = Counter(row["job_id"] for row in rows if row["status"] == "applied")
            assert set(told) - {None} <= set(ids)

    def _all_well(self, world: World, jobs: list[JsonObject]) -> None:
        for job in jobs:
            assert job["status"] == "succeeded", f"it ends {job['status']}: {job['error']}"
            assert job["attempt"] == 1, f"it took {job['attempt']} attempts: {job['reason']}"
        assert world.sim.stats.counts["asked"] == len(jobs), "something was created twice"
