"""Checks of the parser, on real deliveries of the simulator and on what could come instead."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agentflow.core.events import Canceled, Changed, Failed, Succeeded, dump_event, name_of
from agentflow.core.providers import Delivery, Fact
from agentflow.testing.conformance import junk
from agentflow.testing.conformance.fresh import in_fresh_process
from agentflow.testing.conformance.loop import in_loop, until
from agentflow.testing.conformance.order import Order
from agentflow.testing.conformance.subject import Subject
from agentflow.testing.conformance.world import World
from agentflow.webhooks.reading import delivery_of, facts_of


@dataclass(frozen=True, slots=True)
class Told:
    """A job at its end, and what its webhooks said."""

    input: Any
    job: Any
    deliveries: list[Delivery]
    facts: list[Fact]


FINAL = (Succeeded, Failed, Canceled)


class Reading(Subject):
    @in_loop
    async def test_the_end_is_told_by_webhook(self, late: Order) -> None:
        """As a final fact, or as a `Changed` that is then fetched."""
        self.needs_webhooks()
        async with self.world() as world:
            for told in await self._all_told(world, late):
                ends = [f for f in told.facts if isinstance(f.event, (*FINAL, Changed))]
                assert ends, f"no webhook tells the end of {told.input}"
                thin = any(isinstance(fact.event, Changed) for fact in ends)
                assert not thin or self.task(late).fetcher, "a Changed needs a fetch to ask what"

    @in_loop
    async def test_every_fact_finds_its_attempt(self, late: Order) -> None:
        """By the token, from the URL or in the fact, or by the provider's id of the work."""
        self.needs_webhooks()
        async with self.world() as world:
            for told in await self._all_told(world, late):
                for delivery in told.deliveries:
                    for fact in self._facts(delivery):
                        about = fact.external_id or getattr(fact.event, "external_id", None)
                        assert fact.token or delivery.token or about, (
                            f"a {name_of(fact.event)} names no token and no external_id"
                        )
                        known = told.job["external_id"]
                        assert about in (None, known), f"it is about {about}, its job {known}"

    @in_loop
    async def test_parsing_is_pure(self, late: Order) -> None:
        """The same bytes say the same: again, later, in another process without network, files or
        children. Deliveries are parsed anew whenever one is replayed."""
        deliveries, _ = await self._told(late, late.input)
        here = [[dumped(fact) for fact in self._facts(each)] for each in deliveries]
        again = [[dumped(fact) for fact in self._facts(each)] for each in reversed(deliveries)]
        assert here == again[::-1], "parsed twice, a delivery says two things"
        sent = [_portable(each) for each in deliveries]
        with self.settings(self.make()):
            there = in_fresh_process(self.provider, "parse", {"deliveries": sent})
        assert here == there, "in another process, a delivery says another thing"

    @in_loop
    async def test_a_delivery_without_sense_gives_no_facts(self, late: Order) -> None:
        """What comes is signed; that does not make it sensible. What the parser raises would stand
        among the failed deliveries, and nobody could mend it."""
        deliveries, _ = await self._told(late, late.input)
        bodies = list(junk.BODIES)
        for delivery in deliveries:
            bodies += junk.altered(delivery.body)
        for body in bodies:
            try:
                facts = facts_of(self.provider, replace(deliveries[-1], body=body))
            except Exception as error:
                raise AssertionError(
                    f"parse raises {type(error).__name__}: {error} for {body[:300]!r}"
                ) from error
            if body in junk.BODIES:
                ends = [fact for fact in facts if isinstance(fact.event, FINAL)]
                assert not ends, f"parse makes an end of {body[:300]!r}"

    @in_loop
    async def test_what_is_unknown_yet_ends_nothing(self, late: Order) -> None:
        """A type or status of next year is no success and no failure."""
        deliveries, _ = await self._told(late, late.input)
        for delivery in deliveries:
            body = junk.renamed(delivery.body)
            for fact in self._facts(replace(delivery, body=body)):
                assert not isinstance(fact.event, FINAL), (
                    f"an unknown word is taken for {name_of(fact.event)}: {body[:300]!r}"
                )

    @in_loop
    async def test_a_delivery_has_a_type_or_none(self, late: Order) -> None:
        """`type_of` is asked about every delivery; applications select by it."""
        deliveries, _ = await self._told(late, late.input)
        for delivery in deliveries:
            said = self.provider.typer(delivery)
            assert isinstance(said, str), f"type_of gives {said!r} for a real webhook"

    @in_loop
    async def test_fetch_agrees_with_the_webhook(self, late: Order) -> None:
        """One translation serves both: whoever is heard first, the job ends the same."""
        task = self.task(late)
        if task.fetcher is None:
            pytest.skip(f"{task.name} has no fetch")
        async with self.world() as world, self.attempts_on(world) as attempts:
            for told in await self._all_told(world, late):
                ends = [f.event for f in told.facts if isinstance(f.event, (*FINAL, Changed))]
                if isinstance(ends[0], Changed):
                    continue  # the webhook is thin: it was the fetch that said it
                fetched = await attempts.fetch(task, told.job["external_id"], told.input)
                assert _substance(fetched) == _substance(ends[0]), (
                    f"the webhook says {_substance(ends[0])}, fetch says {_substance(fetched)}"
                )

    # -- how -------------------------------------------------------------------------------------

    def _facts(self, delivery: Delivery) -> list[Fact]:
        return facts_of(self.provider, delivery)

    async def _all_told(self, world: World, order: Order) -> list[Told]:
        """What the webhooks said of each way this order can end, where they said it."""
        inputs = [order.input, *(end.input for end in order.ends)]
        ids = [await world.submit(order.task, input) for input in inputs]
        jobs = [await world.end(id) for id in ids]
        heard = {j["id"] for j in jobs if j["external_id"]}
        rows = await until(
            world.inbox,
            lambda rows: not heard - {row["job_id"] for row in rows},
            10.0,
            "a job has ended, and no webhook about it came",
        )
        said = [(row["job_id"], delivery_of(row)) for row in rows]
        return [
            Told(input, job, mine, [fact for each in mine for fact in self._facts(each)])
            for input, job in zip(inputs, jobs, strict=True)
            if job["id"] in heard and (mine := [d for id, d in said if id == job["id"]])
        ]

    async def _told(self, order: Order, input: Any) -> tuple[list[Delivery], Any]:
        """The deliveries about a job that ended, and the job."""
        self.needs_webhooks()
        async with self.world() as world:
            job = await world.run(order.task, input)
            await world.heard(1)
            return await world.deliveries(), job


def dumped(fact: Fact) -> list[Any]:
    """A fact as JSON, to compare it across processes."""
    return [name_of(fact.event), dump_event(fact.event), fact.external_id, fact.token, fact.id]


def _substance(event: Any) -> Any:
    """What an end comes to, without who said it."""
    match event:
        case Succeeded(result=result):
            return result
        case Failed(error=error):
            return error
        case Canceled():
            return "canceled"
        case _:
            return event


def _portable(delivery: Delivery) -> dict[str, Any]:
    return {
        "body": base64.b64encode(delivery.body).decode(),
        "headers": dict(delivery.headers),
        "delivery_id": delivery.delivery_id,
        "token": delivery.token,
        "received_at": delivery.received_at.isoformat() if delivery.received_at else None,
    }
