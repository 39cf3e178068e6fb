"""The rules of the machine, one at a time: what always holds, and a job's way to the provider."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta

import pytest
from support.states import (
    ALL,
    CALLED,
    DEADLINE,
    ENDED,
    EVENTS,
    LEAST,
    MOST,
    NOW,
    OPEN,
    PLAIN,
    POLLED,
    accepted,
    after,
    canceling,
    effects,
    failed,
    job,
    queued,
    retried,
    scheduled,
    seconds,
    started,
    succeeded,
    told,
    waiting,
    woken,
)

from agentflow.core.events import (
    Abandoned,
    CancelRequested,
    Changed,
    Event,
    Failed,
    Progressed,
    Submitted,
    Woke,
)
from agentflow.core.job import Attempt, Job, Phase, Status
from agentflow.core.machine import decide
from agentflow.core.policy import Abilities, Policy
from agentflow.core.results import Progress
from agentflow.core.transition import LONGEST, RING_EVERY, Disposition, Effect, Ring, Transition
from agentflow.errors import InvalidInput, OutcomeUnknown, RateLimited
from agentflow.types import Token

# Purity


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("before", [*OPEN.values(), *ENDED.values()], ids=[*OPEN, *ENDED])
def test_the_same_arguments_give_the_same_decision_and_stay_as_they_were(
    before: Job, event: Event
) -> None:
    kept = copy.deepcopy((before, event))
    first, second = (decide(before, event, seconds(20), MOST) for _ in range(2))
    assert first == second
    assert (before, event) == kept


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("before", OPEN.values(), ids=OPEN)
def test_an_open_job_has_an_alarm_and_a_final_one_has_none(before: Job, event: Event) -> None:
    result = decide(before, event, seconds(20), LEAST).after
    assert (result.wake_at is None) is result.final


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("before", ENDED.values(), ids=ENDED)
def test_final_is_final(before: Job, event: Event) -> None:
    transition = decide(before, event, DEADLINE + timedelta(days=1), MOST)
    assert transition.after is before
    assert transition.disposition is not Disposition.APPLIED


@pytest.mark.parametrize("before", [*OPEN.values(), *ENDED.values()], ids=[*OPEN, *ENDED])
def test_a_second_submission_is_ignored(before: Job) -> None:
    assert told(before, Submitted()) == Transition(before, Disposition.IGNORED, "repeated")


@pytest.mark.parametrize("asked", [1e300, float("inf"), float("nan"), -1e300])
def test_no_number_of_a_provider_is_too_odd(asked: float) -> None:
    polled = told(job(abilities=POLLED), accepted(poll_after=asked)).after
    again = told(job(), failed(RateLimited(retry_after=asked))).after
    for decided in (polled, again):
        assert decided.wake_at is None or decided.wake_at <= seconds(LONGEST)


# Claims


def test_a_claim_of_a_queued_job_is_granted() -> None:
    transition = told(queued(), started("n7"))
    granted = transition.after
    assert transition.reason == granted.reason == "started"
    assert granted.status is Status.RUNNING
    assert (granted.current.nonce, granted.current.worker) == ("n7", "w1")
    assert granted.started_at == granted.current.started_at == NOW
    assert granted.wake_at == seconds(granted.policy.lease)


@pytest.mark.parametrize("nonce", ["n1", "n2"])
def test_an_attempt_is_granted_once(nonce: str) -> None:
    """The writer answers the same nonce the same again; the row does not change for it."""
    assert told(job(), started(nonce)) == Transition(job(), Disposition.IGNORED, "not_this_attempt")


@pytest.mark.parametrize("attempt", [0, 1, 3])
def test_a_claim_of_another_attempt_is_denied(attempt: int) -> None:
    second = retried(Status.QUEUED, attempts=(CALLED, Attempt(2, Token("t2"))))
    assert told(second, started("n9", attempt)).reason == "not_this_attempt"
    assert told(second, started("n9", 2)).after.status is Status.RUNNING


def test_a_claim_before_its_time_is_denied() -> None:
    assert told(scheduled(), started()).disposition is Disposition.IGNORED


def test_a_claim_after_the_deadline_is_denied() -> None:
    transition = told(queued(), started(), now=DEADLINE)
    assert (transition.disposition, transition.reason) == (Disposition.IGNORED, "deadline")


def test_a_claim_of_a_canceling_job_is_denied() -> None:
    assert told(canceling(), started()).reason == "canceling"


def test_a_job_keeps_the_time_of_its_first_start() -> None:
    second = queued(started_at=NOW - timedelta(minutes=5))
    assert told(second, started()).after.started_at == NOW - timedelta(minutes=5)


# The bell


def test_a_scheduled_job_is_queued_and_rung_for_when_its_time_comes() -> None:
    transition = woken(scheduled(reason="retry:timeout"))
    assert transition.after.status is Status.QUEUED
    assert transition.after.reason == "retry:timeout"
    assert transition.rings == (Ring(Effect.CALL, 1),)


def test_the_bell_rings_again_while_nobody_claims() -> None:
    transition = woken(queued())
    assert transition.disposition is Disposition.QUIET
    assert transition.rings == (Ring(Effect.CALL, 1),)
    assert transition.after.wake_at == seconds(15 + RING_EVERY)


@pytest.mark.parametrize("before", OPEN.values(), ids=OPEN)
def test_an_alarm_that_is_early_changes_nothing(before: Job) -> None:
    assert told(before, Woke()) == Transition(before, Disposition.QUIET, "early")


# The provider takes it


def test_who_is_accepted_waits() -> None:
    transition = told(job(), accepted("x1"))
    result = transition.after
    assert (result.status, result.phase, transition.reason) == (
        Status.WAITING,
        Phase.PROVIDER,
        "accepted",
    )
    assert result.current.external_id == "x1"


@pytest.mark.parametrize(
    ("abilities", "first"),
    [
        pytest.param(POLLED, 7, id="the provider's word counts"),
        pytest.param(ALL, 60, id="late when a webhook is expected"),
        pytest.param(Abilities(webhooks=True), 3600, id="never when nobody can be asked"),
    ],
)
def test_the_first_look_at_the_provider(abilities: Abilities, first: float) -> None:
    result = told(job(abilities=abilities), accepted(poll_after=7)).after
    assert result.wake_at == seconds(first)


def test_looks_at_the_provider_grow_apart_to_a_bound() -> None:
    at, distances = told(job(abilities=POLLED), accepted()).after, []
    for _ in range(12):
        before = at.wake_at
        at = woken(at).after
        assert before is not None
        assert at.wake_at is not None
        distances.append((at.wake_at - before).total_seconds())
    assert distances[:3] == [7.5, 11.25, 16.875]
    assert distances == sorted(distances)
    assert distances[-1] == 60


def test_a_look_asks_the_provider_and_writes_no_history() -> None:
    transition = woken(waiting())
    assert transition.disposition is Disposition.QUIET
    assert transition.rings == (Ring(Effect.FETCH, 1),)


def test_a_look_at_work_without_an_id_searches_for_it() -> None:
    assert woken(waiting(attempts=(CALLED,))).rings == (Ring(Effect.FIND, 1),)


def test_a_job_of_which_nobody_can_be_asked_waits_for_the_deadline() -> None:
    transition = woken(waiting(abilities=Abilities(webhooks=True)))
    assert transition.after.wake_at == DEADLINE
    assert transition.rings == ()


def test_a_second_acceptance_is_ignored() -> None:
    assert told(waiting(), accepted()).reason == "repeated"


def test_an_id_that_comes_late_is_learned() -> None:
    """The first word of the provider came by the attempt's token and named no id."""
    found = after(waiting(Phase.UNKNOWN), Progressed(0.1, attempt=1), accepted("x1"))
    assert found.current.external_id == "x1"
    assert found.wake_at == seconds(60)


def test_another_id_for_an_attempt_is_refused_and_canceled() -> None:
    transition = told(waiting(), accepted("x2"))
    assert transition.reason == "other_external_id"
    assert transition.rings == (Ring(Effect.CANCEL, 1, "x2"),)


@pytest.mark.parametrize("event", [succeeded(external_id="x2"), failed(InvalidInput(), 1)])
def test_the_end_of_other_work_is_not_the_end_of_this(event: Event) -> None:
    other = replace(event, external_id="x2") if isinstance(event, Failed) else event
    assert told(waiting(), other).reason == "other_external_id"


@pytest.mark.parametrize("attempt", [0, -1, 2, 99])
def test_a_fact_of_no_attempt_is_ignored(attempt: int) -> None:
    assert told(job(), succeeded(attempt)).reason == "no_such_attempt"


def test_a_fact_of_an_attempt_never_granted_is_ignored() -> None:
    assert told(queued(), succeeded()).reason == "never_granted"


def test_a_repeatable_call_needs_no_grant() -> None:
    transition = told(queued(policy=Policy(repeatable=True)), accepted())
    assert transition.after.status is Status.WAITING


def test_an_adopted_call_needs_no_grant() -> None:
    adopted = waiting(attempts=(Attempt(1, Token("t1"), external_id="x1"),))
    assert told(adopted, succeeded(external_id="x1")).after.status is Status.SUCCEEDED


# Progress


def test_progress_is_kept() -> None:
    result = after(job(), Progressed(0.2, "loading", attempt=1), Progressed(0.4, attempt=1))
    assert result.progress == Progress(0.4, "loading")


@pytest.mark.parametrize("before", [job(), waiting(), waiting(Phase.UNKNOWN)])
def test_progress_never_goes_back(before: Job) -> None:
    far = replace(before, progress=Progress(0.8))
    assert told(far, Progressed(0.3, attempt=1)).after.progress == Progress(0.8)


def test_progress_that_is_no_news_writes_no_history() -> None:
    transition = told(job(progress=Progress(0.5)), Progressed(0.5, attempt=1))
    assert (transition.disposition, transition.reason) == (Disposition.QUIET, "nothing_new")


def test_old_progress_may_still_bring_the_id() -> None:
    result = told(job(progress=Progress(0.8)), Progressed(0.3, attempt=1, external_id="x1")).after
    assert (result.progress, result.current.external_id) == (Progress(0.8), "x1")


@pytest.mark.parametrize(("said", "kept"), [(7.0, 1.0), (-1.0, 0.0), (float("nan"), 0.0)])
def test_progress_lies_between_0_and_1(said: float, kept: float) -> None:
    assert told(job(), Progressed(said, attempt=1)).after.progress == Progress(kept)


def test_a_new_attempt_starts_from_nothing() -> None:
    assert told(job(progress=Progress(0.8)), failed(RateLimited())).after.progress is None


# Thin webhooks


def test_a_change_of_work_that_waits_is_fetched() -> None:
    transition = told(waiting(), Changed(attempt=1, external_id="x1"))
    assert (transition.disposition, transition.reason) == (Disposition.QUIET, "changed")
    assert transition.rings == (Ring(Effect.FETCH, 1),)


def test_a_change_heard_before_the_answer_of_the_call_is_fetched() -> None:
    transition = told(job(), Changed(attempt=1, external_id="x1"))
    assert transition.after.phase is Phase.PROVIDER
    assert transition.rings == (Ring(Effect.FETCH, 1),)


def test_a_change_without_an_id_says_that_the_call_arrived() -> None:
    transition = told(waiting(Phase.UNKNOWN), Changed(attempt=1))
    assert transition.after.phase is Phase.PROVIDER
    assert transition.rings == (Ring(Effect.FIND, 1),)


EARLY = Changed(attempt=1)
"""It says nothing but that something happened, and comes before the call has answered."""


def test_a_change_without_an_id_before_the_answer_is_fetched_with_the_answer() -> None:
    transition = told(job(), EARLY)
    told_of = transition.after
    assert (transition.disposition, transition.reason) == (Disposition.APPLIED, "noticed")
    assert (told_of.status, told_of.check_at, transition.rings) == (
        Status.RUNNING,
        job().check_at,
        (),
    )
    again = told(told_of, EARLY)
    assert (again.disposition, again.after) == (Disposition.QUIET, told_of)
    answered = told(told_of, accepted(poll_after=60))
    assert answered.rings == (Ring(Effect.FETCH, 1),)
    assert answered.after == told(job(), accepted(poll_after=60)).after
    unable = told(replace(told_of, abilities=PLAIN), accepted())
    assert (unable.after.status, unable.rings) == (Status.WAITING, ())


def test_a_change_before_the_grant_of_a_repeatable_call_is_not_forgotten_by_it() -> None:
    before = queued(policy=Policy(repeatable=True))
    granted = after(before, EARLY, started())
    assert (granted.status, granted.phase) == (Status.RUNNING, Phase.PROVIDER)
    assert told(granted, accepted()).rings == (Ring(Effect.FETCH, 1),)


def test_an_id_that_comes_with_progress_leaves_the_fetch_to_the_answer() -> None:
    named = told(after(job(), EARLY), Progressed(0.5, attempt=1, external_id="x1"))
    assert (named.after.status, named.rings) == (Status.RUNNING, ())
    assert told(named.after, accepted()).rings == (Ring(Effect.FETCH, 1),)


@pytest.mark.parametrize("policy", [Policy(on_unknown="retry"), Policy(on_unknown="fail")])
@pytest.mark.parametrize(
    "end", [failed(OutcomeUnknown()), Abandoned(attempt=1, called=True), Woke()]
)
def test_a_lost_answer_of_work_that_was_told_of_is_looked_for_and_never_repeated(
    policy: Policy, end: Event
) -> None:
    """Told of before or after, it is the same."""
    for events in ([EARLY, end], [end, EARLY]):
        result = after(job(policy=policy), *events, now=seconds(15))
        known = result.status, result.phase, result.attempt
        assert known == (Status.WAITING, Phase.PROVIDER, 1)


def test_the_id_of_work_that_is_found_is_fetched_at_once() -> None:
    found = after(job(), EARLY, failed(OutcomeUnknown()))
    assert told(found, accepted()).rings == (Ring(Effect.FETCH, 1),)


def test_who_cancels_work_that_was_told_of_waits_for_its_id() -> None:
    transition = told(after(job(abilities=PLAIN), EARLY), CancelRequested())
    assert (transition.after.status, transition.after.phase) == (Status.CANCELING, None)
    assert effects(transition) == [Effect.STOP]
    assert effects(told(after(job(), EARLY, CancelRequested()), accepted())) == [Effect.CANCEL]


def test_the_next_attempt_knows_nothing_of_what_was_told_of_the_last() -> None:
    retried = after(job(), EARLY, failed(RateLimited()))
    assert (retried.status, retried.phase, retried.attempt) == (Status.SCHEDULED, None, 2)


def test_a_change_of_an_older_attempt_is_fetched_too() -> None:
    """It may be its success."""
    transition = told(retried(), Changed(attempt=1, external_id="x1"))
    assert transition.rings == (Ring(Effect.CANCEL, 1), Ring(Effect.FETCH, 1))
