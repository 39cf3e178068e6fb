"""What a decision looks like, and the few ways of making one."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from agentflow.core.job import Attempt, Ending, Job, Phase, Status
from agentflow.core.results import ErrorInfo, Result
from agentflow.types import Token

RING_EVERY = 30.0
"""Seconds between two rings of the doorbell for a job that nobody claims."""

LONGEST = 366 * 86_400.0
"""No alarm is set further ahead than this, whatever a provider asks for."""

RANDOM_BYTES = 32
"""How much randomness a decision gets: 8 bytes for the jitter, 24 for the next attempt's token."""


class Disposition(StrEnum):
    APPLIED = "applied"
    IGNORED = "ignored"
    """Old news, or news for nobody: recorded with its reason, changes nothing."""
    QUIET = "quiet"
    """Nothing to tell: at most the timers moved. Writes no history."""


class Effect(StrEnum):
    """Work to ring for after the commit. Losing a ring loses nothing: alarms repeat it."""

    CALL = "call"
    FETCH = "fetch"
    FIND = "find"
    CANCEL = "cancel"
    COLLECT = "collect"
    STOP = "stop"
    """Tell the worker that holds the attempt to stop it."""


@dataclass(frozen=True, slots=True)
class Ring:
    """One effect for one attempt; `external_id` only when it is news to the row."""

    effect: Effect
    attempt: int
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    after: Job
    disposition: Disposition
    reason: str
    rings: tuple[Ring, ...] = ()


def ignored(job: Job, reason: str, *rings: Ring) -> Transition:
    return Transition(job, Disposition.IGNORED, reason, rings)


def quiet(job: Job, reason: str, *rings: Ring) -> Transition:
    return Transition(job, Disposition.QUIET, reason, rings)


def applied(job: Job, reason: str, *rings: Ring) -> Transition:
    return Transition(job, Disposition.APPLIED, reason, rings)


def move(
    job: Job,
    status: Status,
    reason: str,
    *rings: Ring,
    check_at: datetime | None,
    phase: Phase | None = None,
    **changes: Any,
) -> Transition:
    """To an open status, with a fresh count of checks."""
    after = replace(
        job, status=status, reason=reason, phase=phase, check_at=check_at, checks=0, **changes
    )
    return applied(after, reason, *rings)


def finish(
    job: Job, status: Status, reason: str, now: datetime, *rings: Ring, **changes: Any
) -> Transition:
    """To a final status: no alarm, no phase."""
    after = replace(
        job,
        status=status,
        reason=reason,
        phase=None,
        check_at=None,
        checks=0,
        finished_at=now,
        **changes,
    )
    return applied(after, reason, *rings)


def later(now: datetime, seconds: float) -> datetime:
    """`seconds` from now; below 0 and no number at all count as 0."""
    return now + timedelta(seconds=min(max(0.0, seconds), LONGEST))


def growing(checks: int) -> float:
    """2, 4, 8 … seconds, at most 60: the distance between repeated questions."""
    return float(min(60, 2 ** min(checks + 1, 6)))


def poll_delay(job: Job, asked: float | None = None) -> float:
    """Seconds to the next look at the provider; looks grow apart by half each time."""
    policy = job.policy
    if job.abilities.webhooks:
        first, most = policy.poll_after_webhook, max(policy.poll_after_webhook, 300.0)
    else:
        first, most = (asked or policy.poll_after), policy.poll_max
    return min(float(first * 1.5 ** min(job.checks, 50)), max(most, first))


def jitter(random: bytes) -> float:
    """A number in [0, 1) from the decision's randomness."""
    return int.from_bytes(random[:8], "big") / 2**64


def token_from(random: bytes) -> Token:
    """192 unguessable bits, safe in a URL."""
    return Token(base64.urlsafe_b64encode(random[8:RANDOM_BYTES]).decode())


def backoff(job: Job, error: ErrorInfo, random: bytes) -> float:
    """Exponential with full jitter, never below what the provider asked for."""
    policy = job.policy
    most = float(min(policy.backoff_max, policy.backoff * 2.0 ** min(job.attempt - 1, 40)))
    return max(float(error.retry_after or 0.0), most * jitter(random))


def next_attempt(
    job: Job, error: ErrorInfo, now: datetime, random: bytes, reason: str | None = None
) -> Transition:
    """A new attempt after a backoff, or `failed` when no attempt or no time is left."""
    if job.attempt >= job.max_attempts:
        return finish(job, Status.FAILED, f"failed:{error.kind}", now, error=error)
    start = later(now, backoff(job, error, random))
    if start >= job.deadline:
        return finish(job, Status.FAILED, "no_time_left", now, error=error)
    number = job.attempt + 1
    return move(
        job,
        Status.SCHEDULED,
        reason or f"retry:{error.kind}",
        check_at=start,
        attempt=number,
        attempts=(*job.attempts, Attempt(number, token_from(random))),
        progress=None,
        error=error,
    )


def end_canceling(job: Job, reason: str, now: datetime, **changes: Any) -> Transition:
    """What a canceling job ends in when nobody delivers after all."""
    status = Status.EXPIRED if job.ending is Ending.DEADLINE else Status.CANCELED
    return finish(job, status, reason, now, **changes)


def succeed(job: Job, result: Result, reason: str, now: datetime, *rings: Ring) -> Transition:
    """Final, or waiting for the files to be in custody."""
    if not result.uncollected:
        return finish(job, Status.SUCCEEDED, reason, now, *rings, result=result, error=None)
    return move(
        job,
        Status.WAITING,
        "collecting",
        Ring(Effect.COLLECT, job.attempt),
        *rings,
        phase=Phase.COLLECTING,
        check_at=later(now, job.policy.lease),
        result=result,
        error=None,
    )
