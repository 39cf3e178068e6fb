"""Every order of everything that can happen to one job; `EXPLORE=all` searches larger worlds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

import pytest

from agentflow.core.events import Accepted, Event, Failed, Started, Succeeded, Woke
from agentflow.core.job import Job, Phase, Status
from agentflow.core.machine import decide
from agentflow.core.transition import Effect, Transition, applied, quiet
from agentflow.errors import ErrorKind, Unavailable
from agentflow.testing.explorer import Broken, Explored, World, explore, search
from agentflow.testing.explorer.worlds import MORE, WORLDS, table

Decide: TypeAlias = Callable[[Job, Event, datetime, bytes], Transition]

FOUND: list[Explored] = []


@pytest.fixture(scope="module", autouse=True)
def said() -> Iterator[None]:
    """With `-s`: what the searches saw."""
    yield
    print(f"\n{table(FOUND)}")


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_no_order_of_events_breaks_a_rule(world: World) -> None:
    found = explore(world)
    FOUND.append(found)
    told = world.webhooks != "none" or world.fetch or world.synchronous
    assert found.finals.keys() == {"canceled", "expired", "failed", *["succeeded"] * told}


@pytest.mark.skipif(os.environ.get("EXPLORE") != "all", reason="EXPLORE=all: takes long")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", MORE, ids=lambda world: world.name)
def test_no_order_of_events_breaks_a_rule_in_a_larger_world(world: World) -> None:
    FOUND.append(explore(world))


# A machine broken on purpose is found out

TOKENS = World(name="webhooks by token")
FILES = World(name="files", files=1, expiring=True, askings=(1,))
EARLY = World(name="thin webhooks without ids", thin=True, bare=True, askings=(1,))
BARREN = World(name="no word", webhooks="none", fetch=False, cancel=False, askings=(2, 1))


def grants_again(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if isinstance(event, Started) and job.status is Status.RUNNING:
        return decide(replace(job, status=Status.QUEUED), event, job.created_at, random)
    return decide(job, event, now, random)


def sleeps_on(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if isinstance(event, Woke) and job.status is Status.CANCELING:
        return quiet(replace(job, check_at=now + timedelta(1)), "asked_again")
    return decide(job, event, now, random)


def repeats_blindly(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if isinstance(event, Failed) and event.error.kind is ErrorKind.OUTCOME_UNKNOWN:
        event = Failed(Unavailable(), attempt=event.attempt)
    return decide(job, event, now, random)


def reopens(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if isinstance(event, Succeeded) and job.status is Status.CANCELED:
        return applied(replace(job, status=Status.SUCCEEDED, result=event.result), "late")
    return decide(job, event, now, random)


def forgets_to_cancel(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    transition = decide(job, event, now, random)
    kept = (ring for ring in transition.rings if ring.effect is not Effect.CANCEL)
    return replace(transition, rings=tuple(kept))


def forgets_to_ask(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    return replace(decide(job, event, now, random), rings=())


def gives_up_early(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if isinstance(event, Woke) and job.phase is Phase.COLLECTING:
        now += timedelta(days=20)
        job = replace(job, check_at=now)
    return decide(job, event, now, random)


def tries_for_ever(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if isinstance(event, Woke) and job.phase is Phase.COLLECTING:
        job = replace(job, check_at=job.created_at)
    return decide(job, event, now, random)


def forgets_what_was_told(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if isinstance(event, Accepted) and job.status is Status.RUNNING:
        job = replace(job, phase=None)
    return decide(job, event, now, random)


def raises(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    if job.status is Status.EXPIRED:
        raise ZeroDivisionError
    return decide(job, event, now, random)


@pytest.mark.parametrize(
    ("broken", "world", "rule"),
    [
        (grants_again, BARREN, "an attempt's call is made at most once"),
        (repeats_blindly, BARREN, "a call is not repeated while nobody knows"),
        (sleeps_on, TOKENS, "with nothing heard it never ends"),
        (reopens, TOKENS, "final is final"),
        (forgets_to_cancel, TOKENS, "nothing goes on at the provider for nobody"),
        (forgets_to_ask, TOKENS, "what can be fetched is fetched"),
        (gives_up_early, FILES, "a file is not given up while its provider has it"),
        (tries_for_ever, FILES, "with nothing heard it never ends"),
        (forgets_what_was_told, EARLY, "is asked after once its id is known"),
        (raises, TOKENS, "ZeroDivisionError"),
    ],
)
def test_a_broken_machine_is_found_out(
    monkeypatch: pytest.MonkeyPatch, broken: Decide, world: World, rule: str
) -> None:
    monkeypatch.setattr(search, "decide", broken)
    with pytest.raises(Broken, match=rule):
        explore(world)
