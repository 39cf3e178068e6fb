"""The rules of the machine on jobs that are canceled, or come to their deadline."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.states import (
    CALLED,
    DEADLINE,
    KNOWN,
    MOST,
    OPEN,
    PLAIN,
    accepted,
    canceling,
    collecting,
    effects,
    failed,
    job,
    queued,
    scheduled,
    succeeded,
    told,
    waiting,
    woken,
)

from agentflow.core.events import (
    Abandoned,
    Canceled,
    CancelRequested,
    Changed,
    Event,
    Progressed,
    Woke,
)
from agentflow.core.job import Ending, Job, Phase, Status
from agentflow.core.policy import Abilities, Policy
from agentflow.core.transition import Disposition, Effect, Ring
from agentflow.errors import OutcomeUnknown, RateLimited

# Cancel


@pytest.mark.parametrize("before", [scheduled(), queued()])
def test_what_was_not_begun_is_canceled_at_once(before: Job) -> None:
    transition = told(before, CancelRequested())
    assert (transition.after.status, transition.reason) == (Status.CANCELED, "canceled")


@pytest.mark.parametrize(
    ("before", "rung"),
    [
        pytest.param(job(), [Effect.STOP], id="the worker is stopped"),
        pytest.param(job(attempts=(KNOWN,)), [Effect.STOP, Effect.CANCEL], id="and the work"),
        pytest.param(waiting(), [Effect.CANCEL], id="the work is canceled"),
        pytest.param(waiting(Phase.UNKNOWN), [Effect.FIND], id="the work is searched for"),
        pytest.param(waiting(attempts=(CALLED,)), [Effect.FIND], id="or its id"),
    ],
)
def test_what_is_under_way_is_asked_to_end(before: Job, rung: list[Effect]) -> None:
    transition = told(before, CancelRequested())
    result = transition.after
    assert (result.status, result.ending) == (Status.CANCELING, Ending.CANCEL)
    assert (result.phase, transition.reason) == (before.phase, "cancel_requested")
    assert effects(transition) == rung
    assert effects(woken(result)) == rung


def test_a_cancel_that_cannot_be_asked_for_ends_the_job() -> None:
    no_cancel = told(waiting(abilities=Abilities(fetch=True)), CancelRequested())
    assert (no_cancel.after.status, no_cancel.reason) == (Status.CANCELED, "cancel_not_supported")
    nobody = told(waiting(Phase.UNKNOWN, abilities=PLAIN), CancelRequested())
    assert (nobody.after.status, nobody.reason) == (Status.CANCELED, "outcome_unknown")


def test_a_result_under_way_into_custody_is_not_canceled() -> None:
    assert told(collecting(), CancelRequested()).reason == "cancel_too_late"


def test_a_second_cancel_is_ignored() -> None:
    assert told(canceling(), CancelRequested()).reason == "repeated"


@pytest.mark.parametrize("phase", [None, Phase.PROVIDER, Phase.UNKNOWN])
def test_canceling_is_bounded(phase: Phase | None) -> None:
    at, asked = canceling(phase=phase, policy=Policy(cancel_checks=3)), 0
    while not at.final:
        transition = woken(at)
        at, asked = transition.after, asked + 1
    assert (asked, at.status, at.reason) == (3, Status.CANCELED, "cancel_unconfirmed")


@pytest.mark.parametrize(
    ("ending", "status"),
    [(Ending.CANCEL, Status.CANCELED), (Ending.DEADLINE, Status.EXPIRED)],
)
@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Canceled(attempt=1), "canceled"),
        (failed(RateLimited()), "failed_while_canceling"),
        (Abandoned(attempt=1, called=False), "canceled"),
    ],
)
def test_a_canceling_job_ends_as_it_was_asked_to(
    ending: Ending, status: Status, event: Event, reason: str
) -> None:
    transition = told(canceling(ending=ending), event)
    assert (transition.after.status, transition.reason) == (status, reason)


def test_a_result_that_comes_while_canceling_is_kept() -> None:
    transition = told(canceling(), succeeded())
    assert (transition.after.status, transition.reason) == (Status.SUCCEEDED, "cancel_too_late")


@pytest.mark.parametrize(
    "event",
    [
        accepted(),
        Progressed(0.5, attempt=1, external_id="x1"),
        Changed(attempt=1, external_id="x1"),
    ],
)
def test_an_id_heard_while_canceling_is_canceled(event: Event) -> None:
    transition = told(canceling(phase=Phase.UNKNOWN, checks=3), event)
    result = transition.after
    assert (result.status, result.phase, transition.reason) == (
        Status.CANCELING,
        Phase.PROVIDER,
        "found",
    )
    assert transition.rings == (Ring(Effect.CANCEL, 1),)
    assert result.checks == 0
    unable = told(canceling(abilities=PLAIN), event)
    assert (unable.after.status, unable.reason) == (Status.CANCELED, "cancel_not_supported")


@pytest.mark.parametrize("event", [failed(OutcomeUnknown()), Abandoned(attempt=1, called=True)])
def test_an_unknown_outcome_while_canceling_is_searched_for(event: Event) -> None:
    transition = told(canceling(), event)
    assert transition.after.phase is Phase.UNKNOWN
    assert transition.rings == (Ring(Effect.FIND, 1),)
    known = told(canceling(attempts=(KNOWN,)), event)
    assert known.after.phase is Phase.PROVIDER
    assert known.rings == (Ring(Effect.CANCEL, 1),)


def test_work_that_is_heard_of_after_the_end_is_canceled() -> None:
    for event in (
        accepted(),
        Progressed(0.5, attempt=1, external_id="x1"),
        Changed(attempt=1, external_id="x1"),
    ):
        transition = told(job(Status.CANCELED), event)
        assert (transition.disposition, transition.reason) == (Disposition.IGNORED, "final")
        assert transition.rings == (Ring(Effect.CANCEL, 1, "x1"),)
        assert told(job(Status.CANCELED, abilities=PLAIN), event).rings == ()


# The deadline


@pytest.mark.parametrize("before", [scheduled(), queued()])
def test_what_was_not_begun_expires(before: Job) -> None:
    transition = told(before, Woke(), now=DEADLINE)
    assert (transition.after.status, transition.reason) == (Status.EXPIRED, "deadline")
    assert transition.after.error is not None


@pytest.mark.parametrize("before", [job(), waiting(), waiting(Phase.UNKNOWN)])
def test_the_deadline_asks_what_is_under_way_to_end(before: Job) -> None:
    transition = told(before, Woke(), now=DEADLINE)
    assert transition.after.status is Status.CANCELING
    assert (transition.after.ending, transition.reason) == (Ending.DEADLINE, "deadline")
    assert transition.after.error is not None
    late = told(transition.after, Canceled(attempt=1), now=DEADLINE).after
    assert (late.status, late.error) == (Status.EXPIRED, transition.after.error)


def test_the_deadline_does_not_cut_a_cancel_short() -> None:
    at = canceling(check_at=DEADLINE + timedelta(seconds=30))
    assert at.wake_at == at.check_at


@pytest.mark.parametrize("before", OPEN.values(), ids=OPEN)
def test_with_nothing_but_alarms_every_job_ends(before: Job) -> None:
    at, alarms = before, 0
    while at.wake_at is not None:
        at, alarms = woken(at, random=MOST).after, alarms + 1
        assert alarms < 200
