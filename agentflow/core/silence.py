"""What an alarm means: nobody said anything new by the time somebody should have."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import assert_never

from agentflow.core.custody import still_collecting
from agentflow.core.job import Ending, Job, Phase, Status
from agentflow.core.results import ErrorInfo
from agentflow.core.steps import (
    UNKNOWN_ERROR,
    ask,
    begin_canceling,
    chase,
    find,
    resolve_unknown,
    unsure,
)
from agentflow.core.transition import (
    RING_EVERY,
    Effect,
    Ring,
    Transition,
    end_canceling,
    finish,
    growing,
    ignored,
    later,
    move,
    next_attempt,
    poll_delay,
    quiet,
)
from agentflow.errors import ErrorKind

DEADLINE_ERROR = ErrorInfo(ErrorKind.TIMEOUT, "The deadline passed before the job ended.")
LEASE_ERROR = ErrorInfo(ErrorKind.UNAVAILABLE, "The worker fell silent.", retryable=True)


def on_woke(job: Job, now: datetime, random: bytes) -> Transition:
    """Everything heard before the alarm has been read; see design rule 8."""
    if job.wake_at is None:
        return quiet(job, "final")
    if now < job.wake_at:
        return quiet(job, "early")
    match job.status:
        case Status.SCHEDULED | Status.QUEUED if now >= job.deadline:
            return finish(job, Status.EXPIRED, "deadline", now, error=job.error or DEADLINE_ERROR)
        case Status.SCHEDULED:
            ring = Ring(Effect.CALL, job.attempt)
            return move(job, Status.QUEUED, job.reason, ring, check_at=later(now, RING_EVERY))
        case Status.QUEUED:
            ring = Ring(Effect.CALL, job.attempt)
            return again(job, later(now, RING_EVERY), "rang", ring)
        case Status.WAITING if job.phase is Phase.COLLECTING:
            return still_collecting(job, now)
        case Status.RUNNING | Status.WAITING if now >= job.deadline:
            late = replace(job, error=job.error or DEADLINE_ERROR)
            return begin_canceling(late, Ending.DEADLINE, now)
        case Status.RUNNING if job.policy.repeatable and job.current.external_id is None:
            return next_attempt(job, LEASE_ERROR, now, random, reason="lease_lost")
        case Status.RUNNING:
            return unsure(job, now, random, UNKNOWN_ERROR, reason="lease_lost")
        case Status.WAITING if job.phase is Phase.UNKNOWN:
            return still_unknown(job, now, random)
        case Status.WAITING:
            return look(job, now)
        case Status.CANCELING:
            return still_canceling(job, now)
        case Status.SUCCEEDED | Status.FAILED | Status.CANCELED | Status.EXPIRED:
            return ignored(job, "final")
        case _:
            assert_never(job.status)


def again(job: Job, check_at: datetime, reason: str, *rings: Ring) -> Transition:
    """Only the timers move."""
    return quiet(replace(job, check_at=check_at, checks=job.checks + 1), reason, *rings)


def look(job: Job, now: datetime) -> Transition:
    """Ask the provider; the webhook may be lost."""
    rings = ask(job)
    if not rings:
        return again(job, job.deadline, "nothing_to_ask")
    counted = replace(job, checks=job.checks + 1)
    return again(job, later(now, poll_delay(counted)), "polled", *rings)


def still_unknown(job: Job, now: datetime, random: bytes) -> Transition:
    if job.checks + 1 < job.policy.unknown_checks:
        return again(job, later(now, growing(job.checks + 1)), "looked", *find(job))
    return resolve_unknown(job, now, random)


def still_canceling(job: Job, now: datetime) -> Transition:
    """Repeat the cancel, or give up on hearing of it."""
    if job.checks + 1 >= job.policy.cancel_checks:
        return end_canceling(job, "cancel_unconfirmed", now)
    return again(job, later(now, growing(job.checks + 1)), "asked_again", *chase(job))
