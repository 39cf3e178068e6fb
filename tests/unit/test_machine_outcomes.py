"""The rules of the machine on what a call comes to: success, files, failure, and not knowing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from support.states import (
    CALLED,
    DEADLINE,
    FILE,
    KNOWN,
    MOST,
    NOW,
    PLAIN,
    SECOND,
    STORED,
    accepted,
    canceling,
    collecting,
    failed,
    job,
    queued,
    retried,
    seconds,
    started,
    succeeded,
    told,
    waiting,
    woken,
)

from agentflow.core.events import Abandoned, Canceled, Collected, Event, Progressed
from agentflow.core.job import Attempt, Ending, Job, Phase, Status
from agentflow.core.policy import Policy
from agentflow.core.results import Custody, ErrorInfo, Result
from agentflow.core.transition import Disposition, Effect, Ring, Transition
from agentflow.errors import (
    ErrorKind,
    InvalidInput,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    Unavailable,
)
from agentflow.types import Token

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
