"""The rules of the machine, one at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentflow.core.events import (
    Abandoned,
    Accepted,
    Canceled,
    CancelRequested,
    Changed,
    Collected,
    Event,
    Failed,
    Progressed,
    Started,
    Submitted,
    Succeeded,
    Woke,
)
from agentflow.core.job import FINAL, Attempt, Ending, Job, Phase, Status
from agentflow.core.machine import decide
from agentflow.core.policy import Abilities, Policy
from agentflow.core.results import Artifact, Custody, ErrorInfo, Progress, Result
from agentflow.core.transition import (
    LONGEST,
    RANDOM_BYTES,
    RING_EVERY,
    Disposition,
    Effect,
    Ring,
    Transition,
)
from agentflow.errors import (
    ErrorKind,
    InvalidInput,
    OutcomeUnknown,
    ProviderError,
    ProviderFailure,
    RateLimited,
    Unavailable,
)
from agentflow.types import JobId, Token

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DEADLINE = NOW + timedelta(hours=1)
LEAST, MOST = bytes(RANDOM_BYTES), b"\xff" * RANDOM_BYTES

ALL = Abilities(webhooks=True, fetch=True, find=True, cancel=True)
POLLED = Abilities(fetch=True, cancel=True)
PLAIN = Abilities()

CALLED = Attempt(1, Token("t1"), nonce="n1", worker="w1", started_at=NOW)
KNOWN = replace(CALLED, external_id="x1")
SECOND = Attempt(2, Token("t2"), nonce="n2", worker="w2", started_at=NOW)
FILE = Artifact("https://acme/a.png")
STORED = Artifact("https://acme/a.png", id="f0", status=Custody.STORED, key="k")


def seconds(value: float) -> datetime:
    return NOW + timedelta(seconds=value)


def job(status: Status = Status.RUNNING, **changes: Any) -> Job:
    """A job whose first attempt was granted, unless said otherwise."""
    given: dict[str, Any] = {
        "id": JobId("job_" + "0" * 32),
        "task": "acme.make",
        "status": status,
        "created_at": NOW,
        "deadline": DEADLINE,
        "check_at": None if status in FINAL else seconds(15),
        "attempts": (CALLED,),
        "abilities": ALL,
    }
    return Job(**given | changes)


def queued(**changes: Any) -> Job:
    return job(Status.QUEUED, **{"attempts": (Attempt(1, Token("t1")),)} | changes)


def scheduled(**changes: Any) -> Job:
    return job(Status.SCHEDULED, **{"attempts": (Attempt(1, Token("t1")),)} | changes)


def waiting(phase: Phase = Phase.PROVIDER, **changes: Any) -> Job:
    known = (CALLED if phase is Phase.UNKNOWN else KNOWN,)
    return job(Status.WAITING, **{"phase": phase, "attempts": known} | changes)


def collecting(*files: Artifact, **changes: Any) -> Job:
    named = [replace(f, id=f"f{i}") for i, f in enumerate(files or (FILE,))]
    return waiting(Phase.COLLECTING, result=Result(artifacts=named), **changes)


def canceling(**changes: Any) -> Job:
    return job(Status.CANCELING, **{"ending": Ending.CANCEL} | changes)


def retried(status: Status = Status.RUNNING, **changes: Any) -> Job:
    """In its second attempt, the first one's fate unknown."""
    return job(status, **{"attempt": 2, "attempts": (CALLED, SECOND)} | changes)


def told(job: Job, event: Event, *, now: datetime = NOW, random: bytes = LEAST) -> Transition:
    return decide(job, event, now, random)


def woken(job: Job, *, random: bytes = LEAST) -> Transition:
    """When the alarm is due."""
    assert job.wake_at is not None
    return decide(job, Woke(), job.wake_at, random)


def after(job: Job, *events: Event, **how: Any) -> Job:
    for event in events:
        job = told(job, event, **how).after
    return job


def effects(transition: Transition) -> list[Effect]:
    return [ring.effect for ring in transition.rings]


def failed(error: ProviderFailure, attempt: int = 1, **more: Any) -> Failed:
    return Failed(error, attempt=attempt, **more)


def started(nonce: str = "n1", attempt: int = 1) -> Started:
    return Started(nonce, "w1", attempt=attempt)


def accepted(external_id: str = "x1", attempt: int = 1, **more: Any) -> Accepted:
    return Accepted(external_id, attempt=attempt, **more)


def succeeded(attempt: int = 1, *files: Artifact, **more: Any) -> Succeeded:
    return Succeeded(result=Result("done", artifacts=files), attempt=attempt, **more)


OPEN = {
    "scheduled": scheduled(),
    "queued": queued(),
    "running": job(),
    "told_of": job(phase=Phase.PROVIDER),
    "waiting": waiting(),
    "unknown": waiting(Phase.UNKNOWN),
    "collecting": collecting(),
    "canceling": canceling(),
    "canceling_known": canceling(phase=Phase.PROVIDER, attempts=(KNOWN,)),
    "canceling_unknown": canceling(phase=Phase.UNKNOWN),
}
ENDED = {status.value: job(status, error=None, result=Result()) for status in sorted(FINAL)}
EVENTS: dict[str, Event] = {
    "submitted": Submitted(),
    "started": started("n9"),
    "accepted": accepted(),
    "accepted_news": accepted("x9"),
    "progressed": Progressed(0.5, attempt=1, external_id="x1"),
    "changed": Changed(attempt=1, external_id="x1"),
    "changed_early": Changed(attempt=1),
    "succeeded": succeeded(),
    "failed": failed(RateLimited()),
    "unsure": failed(OutcomeUnknown()),
    "canceled": Canceled(attempt=1),
    "collected": Collected(attempt=1, artifacts=[STORED]),
    "handed_back": Abandoned(attempt=1, called=False),
    "gave_up": Abandoned(attempt=1, called=True),
    "cancel_requested": CancelRequested(),
    "woke": Woke(),
}


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


# Success


@pytest.mark.parametrize("before", [job(), waiting(), waiting(Phase.UNKNOWN)])
def test_success_ends_the_job(before: Job) -> None:
    transition = told(replace(before, error=ErrorInfo(ErrorKind.TIMEOUT, "")), succeeded())
    result = transition.after
    assert (result.status, result.reason) == (Status.SUCCEEDED, "succeeded")
    assert result.result == Result("done")
    assert (result.error, result.finished_at) == (None, NOW)


def test_success_with_files_waits_for_their_custody() -> None:
    transition = told(job(), succeeded(1, FILE, FILE))
    result = transition.after
    assert (result.status, result.phase) == (Status.WAITING, Phase.COLLECTING)
    assert transition.rings == (Ring(Effect.COLLECT, 1),)
    assert result.result is not None
    assert [a.id for a in result.result.artifacts] == [f"art_{'0' * 32}_{i}" for i in range(2)]


@pytest.mark.parametrize("event", [succeeded(1, FILE), failed(InvalidInput()), Canceled(attempt=1)])
def test_the_first_end_that_is_heard_wins(event: Event) -> None:
    assert told(collecting(), event).after == collecting()


@pytest.mark.parametrize("status", [Status.SCHEDULED, Status.QUEUED, Status.RUNNING])
def test_a_late_success_of_an_older_attempt_wins_and_ends_the_newer(status: Status) -> None:
    newer = replace(SECOND, external_id="x2")
    transition = told(retried(status, attempts=(CALLED, newer)), succeeded(1, external_id="x1"))
    assert (transition.after.status, transition.reason) == (Status.SUCCEEDED, "late_success")
    assert transition.rings == (Ring(Effect.STOP, 2), Ring(Effect.CANCEL, 2))


def test_the_attempt_that_delivered_is_the_one_in_charge() -> None:
    result = told(retried(), succeeded(1, FILE, external_id="x1")).after
    assert (result.attempt, result.current.external_id) == (1, "x1")


def test_a_newer_attempt_that_is_accepted_after_the_late_success_is_canceled() -> None:
    ended = told(retried(), succeeded(1, external_id="x1")).after
    assert told(ended, accepted("x2", 2)).rings == (Ring(Effect.CANCEL, 2, "x2"),)
    copied = told(retried(), succeeded(1, FILE, external_id="x1")).after
    assert told(copied, accepted("x2", 2)).rings == (Ring(Effect.CANCEL, 2),)


def test_work_that_delivered_is_not_canceled_when_its_acceptance_comes_late() -> None:
    ended = told(job(), succeeded()).after
    assert told(ended, accepted("x1")).rings == ()


# Files


def test_the_last_file_ends_the_job() -> None:
    transition = told(collecting(), Collected(attempt=1, artifacts=[STORED]))
    assert (transition.after.status, transition.reason) == (Status.SUCCEEDED, "succeeded")
    assert transition.after.result == Result(artifacts=[STORED])


def test_some_files_are_kept_while_others_are_copied() -> None:
    transition = told(collecting(FILE, FILE), Collected(attempt=1, artifacts=[STORED]))
    result = transition.after
    assert (result.phase, transition.disposition) == (Phase.COLLECTING, Disposition.APPLIED)
    assert result.result is not None
    assert [a.status for a in result.result.artifacts] == [Custody.STORED, Custody.PENDING]


def test_a_lost_file_does_not_fail_the_job() -> None:
    lost = replace(STORED, status=Custody.LOST, key=None, note="404")
    transition = told(collecting(), Collected(attempt=1, artifacts=[lost]))
    assert (transition.after.status, transition.reason) == (Status.SUCCEEDED, "artifacts_lost")


def test_a_file_in_custody_stays_there() -> None:
    once = told(collecting(FILE, FILE), Collected(attempt=1, artifacts=[STORED])).after
    lost = replace(STORED, status=Custody.LOST)
    transition = told(once, Collected(attempt=1, artifacts=[lost]))
    assert transition == Transition(once, Disposition.QUIET, "nothing_collected")


def test_collecting_is_bounded() -> None:
    at = collecting(policy=Policy(collect_checks=3))
    rung = [woken(at), woken(woken(at).after)]
    assert [t.rings for t in rung] == [(Ring(Effect.COLLECT, 1),)] * 2
    end = woken(rung[-1].after)
    assert (end.after.status, end.reason) == (Status.SUCCEEDED, "artifacts_lost")
    assert end.after.result is not None
    assert [a.status for a in end.after.result.artifacts] == [Custody.LOST]


def test_collecting_does_not_end_with_the_deadline() -> None:
    late = collecting(check_at=DEADLINE + timedelta(minutes=1))
    assert late.wake_at == late.check_at
    assert woken(late).after.phase is Phase.COLLECTING


def test_files_of_a_job_that_collects_nothing_are_ignored() -> None:
    for before in (job(), canceling(), waiting()):
        event = Collected(attempt=1, artifacts=[STORED])
        assert told(before, event).reason == "not_collecting"


# Failure and retries


def test_an_error_that_no_retry_can_help_fails_the_job() -> None:
    transition = told(job(), failed(InvalidInput("no")))
    result = transition.after
    assert (result.status, transition.reason) == (Status.FAILED, "failed:invalid_input")
    assert result.error == ErrorInfo(ErrorKind.INVALID_INPUT, "no")


@pytest.mark.parametrize("before", [job(), waiting(), waiting(Phase.UNKNOWN)])
def test_an_error_that_a_retry_can_help_makes_a_new_attempt(before: Job) -> None:
    transition = told(before, failed(RateLimited()), random=MOST)
    result = transition.after
    assert (result.status, transition.reason) == (Status.SCHEDULED, "retry:rate_limited")
    assert result.attempt == len(result.attempts) == 2
    assert (result.current.nonce, result.current.external_id) == (None, None)
    assert result.current.token not in ("", before.current.token)
    assert result.error is not None


def test_a_policy_may_retry_other_errors() -> None:
    policy = Policy(retry_on=frozenset({ErrorKind.PROVIDER_ERROR}))
    assert told(job(policy=policy), failed(ProviderError())).after.status is Status.SCHEDULED


@pytest.mark.parametrize(("attempt", "most"), [(1, 2.0), (2, 4.0), (3, 8.0), (9, 100.0)])
def test_backoff_doubles_to_a_bound_with_full_jitter(attempt: int, most: float) -> None:
    attempts = tuple(Attempt(n, Token(f"t{n}"), nonce="n") for n in range(1, attempt + 1))
    policy = Policy(backoff=2, backoff_max=100)
    at = job(attempt=attempt, attempts=attempts, max_attempts=99, policy=policy)
    least = told(at, failed(Unavailable(), attempt)).after.wake_at
    longest = told(at, failed(Unavailable(), attempt), random=MOST).after.wake_at
    assert least == NOW
    assert longest is not None
    assert (longest - NOW).total_seconds() == pytest.approx(most)


def test_backoff_is_never_shorter_than_the_provider_asks() -> None:
    assert told(job(), failed(RateLimited(retry_after=120))).after.wake_at == seconds(120)


def test_the_last_attempt_fails_the_job() -> None:
    transition = told(retried(max_attempts=2), failed(RateLimited(), 2))
    assert (transition.after.status, transition.reason) == (Status.FAILED, "failed:rate_limited")


def test_no_retry_starts_after_the_deadline() -> None:
    transition = told(job(), failed(RateLimited(retry_after=3600)))
    assert (transition.after.status, transition.reason) == (Status.FAILED, "no_time_left")


@pytest.mark.parametrize(
    "event", [failed(RateLimited()), Canceled(attempt=1), Abandoned(attempt=1, called=True)]
)
def test_the_end_of_an_older_attempt_is_old_news(event: Event) -> None:
    assert told(retried(), event) == Transition(retried(), Disposition.IGNORED, "superseded")


def test_an_older_attempt_that_turns_out_alive_is_canceled() -> None:
    for event in (accepted(), Progressed(0.5, attempt=1, external_id="x1")):
        transition = told(retried(), event)
        assert transition.rings == (Ring(Effect.CANCEL, 1),)
        assert transition.after.attempts[0].external_id == "x1"
        assert transition.after.status is Status.RUNNING
        assert told(transition.after, event).rings == ()


def test_a_provider_that_stops_the_work_ends_the_job() -> None:
    transition = told(waiting(), Canceled(attempt=1))
    assert (transition.after.status, transition.reason) == (
        Status.CANCELED,
        "canceled_by_provider",
    )


# Unknown outcomes


@pytest.mark.parametrize("event", [failed(OutcomeUnknown()), Abandoned(attempt=1, called=True)])
def test_an_unknown_outcome_is_looked_for(event: Event) -> None:
    transition = told(job(), event)
    result = transition.after
    assert (result.status, result.phase) == (Status.WAITING, Phase.UNKNOWN)
    assert transition.reason == "submit_unknown"
    assert transition.rings == (Ring(Effect.FIND, 1),)
    assert result.wake_at == seconds(2)


def test_a_silent_worker_leaves_an_unknown_outcome() -> None:
    transition = woken(job())
    assert (transition.after.phase, transition.reason) == (Phase.UNKNOWN, "lease_lost")
    assert transition.rings == (Ring(Effect.FIND, 1),)


@pytest.mark.parametrize("event", [failed(OutcomeUnknown()), Abandoned(attempt=1, called=True)])
def test_a_call_whose_id_is_known_is_not_unknown(event: Event) -> None:
    for policy in (Policy(), Policy(repeatable=True)):
        transition = told(job(attempts=(KNOWN,), policy=policy), event)
        assert (transition.after.phase, transition.reason) == (Phase.PROVIDER, "found")
        assert transition.rings == (Ring(Effect.FETCH, 1),)
        silent = woken(job(attempts=(KNOWN,), policy=policy))
        assert (silent.after.phase, silent.reason) == (Phase.PROVIDER, "found")


@pytest.mark.parametrize("event", [accepted(), Progressed(0.1, attempt=1, external_id="x1")])
def test_a_call_that_is_found_goes_on(event: Event) -> None:
    transition = told(waiting(Phase.UNKNOWN, error=ErrorInfo(ErrorKind.OUTCOME_UNKNOWN, "")), event)
    assert (transition.after.phase, transition.reason) == (Phase.PROVIDER, "found")
    assert transition.after.error is None


def test_looking_for_a_call_is_repeated_at_growing_distances() -> None:
    at = told(job(), failed(OutcomeUnknown())).after
    times = [at.wake_at]
    while at.phase is Phase.UNKNOWN and not at.final:
        transition = woken(at)
        at = transition.after
        times.append(at.wake_at)
        assert at.final or transition.rings == (Ring(Effect.FIND, 1),)
    assert times == [*map(seconds, (2, 6, 14, 30, 62, 122)), None]


@pytest.mark.parametrize(
    ("on_unknown", "status", "reason"),
    [
        ("fail", Status.FAILED, "failed:outcome_unknown"),
        ("retry", Status.SCHEDULED, "retry:outcome_unknown"),
        ("ask", Status.WAITING, "ask"),
    ],
)
def test_the_policy_decides_what_nobody_could_find(
    on_unknown: Any, status: Status, reason: str
) -> None:
    policy = Policy(on_unknown=on_unknown, unknown_checks=1)
    for transition in (
        woken(waiting(Phase.UNKNOWN, policy=policy)),
        told(job(policy=policy, abilities=PLAIN), failed(OutcomeUnknown())),
    ):
        assert (transition.after.status, transition.reason) == (status, reason)
        assert transition.after.error is not None
        assert transition.after.error.kind is ErrorKind.OUTCOME_UNKNOWN


def test_a_question_stays_open_until_the_deadline() -> None:
    asking = woken(waiting(Phase.UNKNOWN, policy=Policy(on_unknown="ask", unknown_checks=0))).after
    assert asking.wake_at == DEADLINE
    assert woken(asking).after.ending is Ending.DEADLINE
    assert told(asking, accepted()).after.phase is Phase.PROVIDER


def test_an_unknown_outcome_is_not_repeated_because_the_error_says_so() -> None:
    transition = told(job(), failed(OutcomeUnknown(retryable=True)))
    assert transition.after.phase is Phase.UNKNOWN
    policy = Policy(retry_on=frozenset({ErrorKind.OUTCOME_UNKNOWN}), unknown_checks=0)
    assert woken(waiting(Phase.UNKNOWN, policy=policy)).after.status is Status.FAILED


def test_a_repeatable_call_is_repeated_when_unsure() -> None:
    repeatable = job(policy=Policy(repeatable=True))
    for transition in (
        woken(repeatable),
        told(repeatable, failed(OutcomeUnknown())),
        told(repeatable, Abandoned(attempt=1, called=True)),
    ):
        assert transition.after.status is Status.SCHEDULED
        assert transition.after.attempt == 2
    assert woken(repeatable).reason == "lease_lost"


# Handing back


@pytest.mark.parametrize("before", [job(), waiting(Phase.UNKNOWN)])
def test_a_call_never_made_is_given_to_another_worker(before: Job) -> None:
    transition = told(before, Abandoned(attempt=1, called=False))
    back = transition.after
    assert (back.status, transition.reason, back.wake_at) == (Status.QUEUED, "handed_back", NOW)
    assert (back.attempt, back.current.nonce) == (1, None)
    assert told(back, started("n2")).after.current.nonce == "n2"


def test_a_call_the_provider_knows_of_was_made_whatever_the_worker_says() -> None:
    transition = told(job(attempts=(KNOWN,)), Abandoned(attempt=1, called=False))
    assert transition.after.phase is Phase.PROVIDER
    ending = told(canceling(attempts=(KNOWN,)), Abandoned(attempt=1, called=False))
    assert ending.rings == (Ring(Effect.CANCEL, 1),)


@pytest.mark.parametrize("before", [queued(), waiting(), collecting()])
def test_nobody_can_give_up_what_nobody_holds(before: Job) -> None:
    assert told(before, Abandoned(attempt=1, called=False)).reason == "not_running"


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
