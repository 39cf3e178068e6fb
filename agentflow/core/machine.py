"""The machine: a pure, total function from a job and an event to what becomes of the job.

`decide` picks the function by the event, and each function matches the status; mypy refuses a
status nobody thought of. Time and randomness come in as arguments, nothing else does.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import assert_never

from agentflow.core.events import (
    Abandoned,
    Accepted,
    Canceled,
    CancelRequested,
    Changed,
    Collected,
    Event,
    Failed,
    OverBudget,
    Progressed,
    Started,
    Submitted,
    Succeeded,
    Woke,
)
from agentflow.core.job import Ending, Job, Phase, Status
from agentflow.core.results import Custody, ErrorInfo
from agentflow.core.silence import on_woke
from agentflow.core.steps import (
    UNKNOWN_ERROR,
    accepted,
    ask,
    begin_canceling,
    cancel_found,
    cancel_unsure,
    failed,
    fetch,
    learn,
    misrouted,
    old_news,
    overtaken,
    progressed,
    stray_cancel,
    superseded,
    unsure,
    with_ids,
    with_progress,
)
from agentflow.core.transition import (
    Transition,
    applied,
    end_canceling,
    finish,
    growing,
    ignored,
    later,
    move,
    next_attempt,
    quiet,
    succeed,
)
from agentflow.errors import ErrorKind

MACHINE_VERSION = 4


def decide(job: Job, event: Event, now: datetime, random: bytes) -> Transition:
    """What becomes of `job`. `random` is `RANDOM_BYTES` long; nothing is read or written."""
    match event:
        case Submitted():
            return ignored(job, "repeated")
        case Started():
            return on_started(job, event, now)
        case Accepted():
            return on_accepted(job, event, now)
        case Progressed():
            return on_progressed(job, event, now)
        case Changed():
            return on_changed(job, event, now)
        case Succeeded():
            return on_succeeded(job, event, now)
        case Failed():
            return on_failed(job, event, now, random)
        case Canceled():
            return on_canceled(job, event, now)
        case Collected():
            return on_collected(job, event, now)
        case Abandoned():
            return on_abandoned(job, event, now, random)
        case OverBudget():
            return on_over_budget(job, event, now)
        case CancelRequested():
            return on_cancel_requested(job, now)
        case Woke():
            return on_woke(job, now, random)
        case _:
            assert_never(event)


def on_started(job: Job, event: Started, now: datetime) -> Transition:
    match job.status:
        case Status.QUEUED if now >= job.deadline:
            return ignored(job, "deadline")
        case Status.QUEUED if event.attempt == job.attempt:
            attempt = replace(
                job.current,
                nonce=event.nonce,
                worker=event.worker,
                started_at=now,
                account=event.account,
            )
            return move(
                job.with_attempt(attempt),
                Status.RUNNING,
                "started",
                phase=job.phase,
                check_at=later(now, job.policy.lease),
                started_at=job.started_at or now,
            )
        case Status.QUEUED | Status.SCHEDULED | Status.RUNNING | Status.WAITING:
            return ignored(job, "not_this_attempt")
        case Status.CANCELING:
            return ignored(job, "canceling")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_accepted(job: Job, event: Accepted, now: datetime) -> Transition:
    refused = misrouted(job, event.attempt, event.external_id)
    if refused:
        return ignored(job, refused, *stray_cancel(job, event.attempt, event.external_id))
    known = learn(job, event.attempt, event.external_id)
    if event.attempt != job.attempt and not job.final:
        return superseded(job, known, event.attempt)
    match job.status:
        case Status.RUNNING | Status.QUEUED:
            return accepted(known, now, "accepted", event.poll_after)
        case Status.WAITING if known != job and job.phase is Phase.COLLECTING:
            return applied(known, "found")
        case Status.WAITING if known != job or job.phase is Phase.UNKNOWN:
            return accepted(known, now, "found", event.poll_after)
        case Status.CANCELING if known != job:
            return cancel_found(known, now)
        case Status.WAITING | Status.CANCELING:
            return ignored(job, "repeated")
        case Status.SCHEDULED:
            return ignored(job, "not_started")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final", *stray_cancel(job, event.attempt, event.external_id))
        case _:
            assert_never(job.status)


def on_progressed(job: Job, event: Progressed, now: datetime) -> Transition:
    refused = misrouted(job, event.attempt, event.external_id)
    if refused or event.attempt != job.attempt:
        return old_news(job, event.attempt, event.external_id, refused)
    known = learn(job, event.attempt, event.external_id)
    match job.status:
        case Status.WAITING if job.phase is Phase.COLLECTING:
            return ignored(job, "collecting")
        case Status.QUEUED | Status.WAITING if known != job or job.phase is Phase.UNKNOWN:
            return accepted(with_progress(known, event), now, "found")
        case Status.RUNNING | Status.QUEUED | Status.WAITING:
            return progressed(job, known, event)
        case Status.CANCELING if known != job:
            return cancel_found(known, now)
        case Status.CANCELING:
            return quiet(job, "canceling")
        case Status.SCHEDULED:
            return ignored(job, "not_started")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final", *stray_cancel(job, event.attempt, event.external_id))
        case _:
            assert_never(job.status)


def on_changed(job: Job, event: Changed, now: datetime) -> Transition:
    refused = misrouted(job, event.attempt, event.external_id)
    if refused or job.final:
        return old_news(job, event.attempt, event.external_id, refused)
    known = learn(job, event.attempt, event.external_id)
    rings = fetch(known, event.attempt)
    if event.attempt != job.attempt:
        return superseded(job, known, event.attempt, *rings)
    match job.status:
        case Status.WAITING if job.phase is Phase.COLLECTING:
            return ignored(job, "collecting")
        case Status.WAITING if known != job or job.phase is Phase.UNKNOWN:
            return accepted(known, now, "found", rings=ask(known))
        case Status.WAITING:
            return quiet(replace(job, check_at=later(now, growing(0))), "changed", *ask(job))
        case Status.RUNNING | Status.QUEUED if known.current.external_id is not None:
            return accepted(known, now, "changed", rings=rings)
        case Status.RUNNING | Status.QUEUED if job.phase is None:
            return applied(replace(job, phase=Phase.PROVIDER), "noticed")
        case Status.RUNNING | Status.QUEUED:
            return quiet(job, "changed")
        case Status.CANCELING if known != job:
            return cancel_found(known, now)
        case Status.CANCELING:
            return quiet(job, "changed", *rings)
        case Status.SCHEDULED:
            return ignored(job, "not_started")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_succeeded(job: Job, event: Succeeded, now: datetime) -> Transition:
    refused = misrouted(job, event.attempt, event.external_id)
    if refused:
        return ignored(job, refused)
    if job.status is Status.WAITING and job.phase is Phase.COLLECTING:
        return ignored(job, "repeated")
    known = replace(learn(job, event.attempt, event.external_id), attempt=event.attempt)
    result = with_ids(job, event.result, now)
    newer = overtaken(job, event.attempt)
    match job.status:
        case Status.SCHEDULED if event.attempt == job.attempt:
            return ignored(job, "not_started")
        case Status.SCHEDULED | Status.QUEUED | Status.RUNNING | Status.WAITING:
            reason = "late_success" if newer else "succeeded"
            return succeed(known, result, reason, now, *newer)
        case Status.CANCELING:
            return succeed(known, result, "cancel_too_late", now, *newer)
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_failed(job: Job, event: Failed, now: datetime, random: bytes) -> Transition:
    refused = misrouted(job, event.attempt, event.external_id)
    if refused:
        return ignored(job, refused)
    if event.attempt != job.attempt and not job.final:
        return ignored(job, "superseded")
    known = learn(job, event.attempt, event.external_id)
    repeatable = job.policy.repeatable and known.current.external_id is None
    unknown = event.error.kind is ErrorKind.OUTCOME_UNKNOWN and not repeatable
    match job.status:
        case Status.WAITING if job.phase is Phase.COLLECTING:
            return ignored(job, "collecting")
        case Status.SCHEDULED:
            return ignored(job, "not_started")
        case Status.RUNNING | Status.QUEUED if unknown:
            return unsure(known, now, random, event.error)
        case Status.CANCELING if unknown and job.phase is None:
            return cancel_unsure(known)
        case Status.WAITING | Status.CANCELING if unknown:
            return ignored(job, "repeated")
        case Status.RUNNING | Status.QUEUED | Status.WAITING:
            return failed(known, event.error, now, random)
        case Status.CANCELING:
            return end_canceling(known, "failed_while_canceling", now, error=event.error)
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_canceled(job: Job, event: Canceled, now: datetime) -> Transition:
    refused = misrouted(job, event.attempt, event.external_id)
    if refused:
        return ignored(job, refused)
    if event.attempt != job.attempt and not job.final:
        return ignored(job, "superseded")
    known = learn(job, event.attempt, event.external_id)
    match job.status:
        case Status.WAITING if job.phase is Phase.COLLECTING:
            return ignored(job, "collecting")
        case Status.RUNNING | Status.QUEUED | Status.WAITING:
            return finish(known, Status.CANCELED, "canceled_by_provider", now)
        case Status.CANCELING:
            return end_canceling(known, "canceled", now)
        case Status.SCHEDULED:
            return ignored(job, "not_started")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_collected(job: Job, event: Collected, now: datetime) -> Transition:
    match job.status:
        case Status.WAITING if job.phase is Phase.COLLECTING and job.result is not None:
            found = {a.id: a for a in event.artifacts if a.status is not Custody.PENDING}
            merged = [
                found.get(a.id, a) if a.status is Custody.PENDING else a
                for a in job.result.artifacts
            ]
            result = job.result.with_artifacts(merged)
            if result == job.result:
                return quiet(job, "nothing_collected")
            if result.uncollected:
                return applied(replace(job, result=result), "collecting")
            lost = any(a.status is Custody.LOST for a in merged)
            reason = "artifacts_lost" if lost else "succeeded"
            return finish(job, Status.SUCCEEDED, reason, now, result=result)
        case Status.SCHEDULED | Status.QUEUED | Status.RUNNING | Status.WAITING:
            return ignored(job, "not_collecting")
        case Status.CANCELING:
            return ignored(job, "not_collecting")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_abandoned(job: Job, event: Abandoned, now: datetime, random: bytes) -> Transition:
    if event.attempt != job.attempt and not job.final:
        return ignored(job, "superseded")
    if event.nonce is not None and event.nonce != job.current.nonce and not job.final:
        return ignored(job, "not_granted")
    nameless = job.current.external_id is None
    unused = nameless and not event.called
    repeatable = nameless and job.policy.repeatable
    match job.status:
        case Status.RUNNING | Status.WAITING if unused and job.phase in (None, Phase.UNKNOWN):
            back = job.with_attempt(replace(job.current, nonce=None, worker=None, account=None))
            return move(back, Status.QUEUED, "handed_back", check_at=now)
        case Status.RUNNING if repeatable:
            lost = ErrorInfo(ErrorKind.UNAVAILABLE, "The worker stopped.", retryable=True)
            return next_attempt(job, lost, now, random)
        case Status.RUNNING:
            return unsure(job, now, random, UNKNOWN_ERROR)
        case Status.CANCELING if unused and job.phase in (None, Phase.UNKNOWN):
            return end_canceling(job, "canceled", now)
        case Status.CANCELING if job.phase is None and repeatable:
            return end_canceling(job, "canceled", now)
        case Status.CANCELING if job.phase is None:
            return cancel_unsure(job)
        case Status.SCHEDULED | Status.QUEUED | Status.WAITING | Status.CANCELING:
            return ignored(job, "not_running")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_over_budget(job: Job, event: OverBudget, now: datetime) -> Transition:
    match job.status:
        case Status.QUEUED if event.attempt == job.attempt:
            error = ErrorInfo(ErrorKind.QUOTA_EXCEEDED, event.message)
            return finish(job, Status.FAILED, "over_budget", now, error=error)
        case Status.QUEUED | Status.SCHEDULED | Status.RUNNING | Status.WAITING | Status.CANCELING:
            return ignored(job, "not_queued")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def on_cancel_requested(job: Job, now: datetime) -> Transition:
    match job.status:
        case Status.SCHEDULED | Status.QUEUED:
            return finish(job, Status.CANCELED, "canceled", now)
        case Status.WAITING if job.phase is Phase.COLLECTING:
            return ignored(job, "cancel_too_late")
        case Status.RUNNING | Status.WAITING:
            return begin_canceling(job, Ending.CANCEL, now)
        case Status.CANCELING:
            return ignored(job, "repeated")
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)
