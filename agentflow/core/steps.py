"""The steps that several decisions share."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from agentflow.core.events import Progressed
from agentflow.core.job import Ending, Job, Phase, Status
from agentflow.core.results import Custody, ErrorInfo, Progress, Result, artifact_id
from agentflow.core.transition import (
    Effect,
    Ring,
    Transition,
    applied,
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

UNKNOWN_ERROR = ErrorInfo(
    ErrorKind.OUTCOME_UNKNOWN, "The call may have reached the provider; nobody can tell."
)


def misrouted(job: Job, number: int, external_id: str | None) -> str | None:
    """Why a provider's fact cannot be about this attempt; None if it can."""
    attempt = job.numbered(number)
    if attempt is None:
        return "no_such_attempt"
    if attempt.external_id and external_id and attempt.external_id != external_id:
        return "other_external_id"
    if attempt.nonce is None and attempt.external_id is None and not job.policy.repeatable:
        return "never_granted"
    return None


def learn(job: Job, number: int, external_id: str | None) -> Job:
    """The job, knowing the attempt's external id if that is news."""
    attempt = job.numbered(number)
    if attempt is None or attempt.external_id is not None or external_id is None:
        return job
    return job.with_attempt(replace(attempt, external_id=external_id))


def stray_cancel(job: Job, number: int, external_id: str | None) -> tuple[Ring, ...]:
    """A ring to cancel work that nobody waits for, where its id is news."""
    attempt = job.numbered(number)
    known = None if attempt is None else attempt.external_id
    delivered = job.status is Status.SUCCEEDED and number == job.attempt and known is None
    if not external_id or known == external_id or delivered or not job.abilities.cancel:
        return ()
    return (Ring(Effect.CANCEL, number, external_id),)


def old_news(job: Job, number: int, external_id: str | None, refused: str | None) -> Transition:
    """A fact that is misrouted, or about an attempt no longer in charge."""
    if refused or job.final:
        return ignored(job, refused or "final", *stray_cancel(job, number, external_id))
    return superseded(job, learn(job, number, external_id), number)


def superseded(job: Job, known: Job, number: int, *rings: Ring) -> Transition:
    """An attempt not in charge turns out to be alive at the provider: remember its id, cancel
    it there."""
    if known == job:
        return ignored(job, "superseded", *rings)
    return applied(known, "superseded", *cancel(known, number), *rings)


def overtaken(job: Job, number: int) -> tuple[Ring, ...]:
    """Rings to stop the attempt in charge when it is not the one that delivered."""
    if number == job.attempt:
        return ()
    return (Ring(Effect.STOP, job.attempt), *cancel(job, job.attempt))


def accepted(
    job: Job,
    now: datetime,
    reason: str,
    poll_after: float | None = None,
    rings: tuple[Ring, ...] = (),
) -> Transition:
    """The provider has it: wait for its webhook, and look for ourselves now and then; at once, if
    it told of the work while we had no id to ask by."""
    if job.phase is Phase.PROVIDER:
        rings = rings or ask(job)
    fresh = replace(job, checks=0, error=None)
    look = later(now, poll_delay(fresh, poll_after)) if ask(job) else job.deadline
    return move(fresh, Status.WAITING, reason, *rings, phase=Phase.PROVIDER, check_at=look)


def with_progress(job: Job, event: Progressed) -> Job:
    """The job with the event's progress, which never goes back; what is left out stays."""
    old = job.progress or Progress()
    fraction = None if event.fraction is None else min(1.0, max(0.0, event.fraction))
    if fraction is None:
        fraction = old.fraction
    elif old.fraction is not None and fraction < old.fraction:
        return job
    message = old.message if event.message is None else event.message
    return replace(job, progress=Progress(fraction, message))


def progressed(job: Job, known: Job, event: Progressed) -> Transition:
    """What is older than what we know, or the same, writes nothing but an id that is news."""
    after = with_progress(known, event)
    if after is job:
        return ignored(job, "stale")
    if after.attempts == job.attempts and after.progress == (job.progress or Progress()):
        return quiet(job, "nothing_new")
    return applied(after, "progressed")


def cancel_found(job: Job, now: datetime) -> Transition:
    """A canceling job learns what to cancel."""
    if not job.abilities.cancel:
        return end_canceling(job, "cancel_not_supported", now)
    return move(
        job,
        Status.CANCELING,
        "found",
        *cancel(job, job.attempt),
        phase=Phase.PROVIDER,
        check_at=later(now, growing(0)),
    )


def cancel_unsure(job: Job) -> Transition:
    """The worker of a canceling job is gone and its call may have left."""
    if job.current.external_id is not None:
        found = replace(job, phase=Phase.PROVIDER)
        return applied(found, "found", *chase(found))
    unknown = replace(job, phase=Phase.UNKNOWN)
    return applied(unknown, "submit_unknown", *chase(unknown))


def cancel(job: Job, number: int) -> tuple[Ring, ...]:
    """A ring to cancel an attempt whose id we know, where the provider can."""
    attempt = job.numbered(number)
    known = attempt is not None and attempt.external_id is not None
    return (Ring(Effect.CANCEL, number),) if known and job.abilities.cancel else ()


def fetch(job: Job, number: int) -> tuple[Ring, ...]:
    """A ring to ask after an attempt whose id we know, where the provider can be asked."""
    attempt = job.numbered(number)
    known = attempt is not None and attempt.external_id is not None
    return (Ring(Effect.FETCH, number),) if known and job.abilities.fetch else ()


def find(job: Job) -> tuple[Ring, ...]:
    return (Ring(Effect.FIND, job.attempt),) if job.abilities.find else ()


def ask(job: Job) -> tuple[Ring, ...]:
    """A ring to ask after the attempt in charge, or after its id first."""
    return find(job) if job.current.external_id is None else fetch(job, job.attempt)


def chase(job: Job) -> tuple[Ring, ...]:
    """Rings that may end the call of a canceling job: stop its worker, cancel it, find it."""
    if job.phase is None:
        return (Ring(Effect.STOP, job.attempt), *cancel(job, job.attempt))
    return find(job) if job.current.external_id is None else cancel(job, job.attempt)


def unsure(
    job: Job, now: datetime, random: bytes, error: ErrorInfo, reason: str = "submit_unknown"
) -> Transition:
    """Bytes of an unrepeatable call may have left and nobody knows what they did, unless the
    provider has told of it."""
    if job.current.external_id is not None or job.phase is Phase.PROVIDER:
        return accepted(job, now, "found", rings=ask(job))
    silent = reason == "lease_lost"  # cut off, perhaps, and not dead: it reports when it is back
    if not (job.abilities.find or job.abilities.webhooks or silent):
        return resolve_unknown(job, now, random, error)
    return move(
        job,
        Status.WAITING,
        reason,
        *find(job),
        phase=Phase.UNKNOWN,
        check_at=later(now, growing(0)),
        error=error,
    )


def resolve_unknown(
    job: Job, now: datetime, random: bytes, error: ErrorInfo = UNKNOWN_ERROR
) -> Transition:
    """Every look found nothing: the policy decides."""
    match job.policy.on_unknown:
        case "fail":
            return finish(job, Status.FAILED, "failed:outcome_unknown", now, error=error)
        case "retry":
            return next_attempt(job, error, now, random)
        case "ask":
            return move(
                job,
                Status.WAITING,
                "ask",
                phase=Phase.UNKNOWN,
                check_at=job.deadline,
                error=error,
            )


def failed(job: Job, error: ErrorInfo, now: datetime, random: bytes) -> Transition:
    """Again if a retry can help, else the end."""
    repeat_unsure = error.kind is ErrorKind.OUTCOME_UNKNOWN and job.policy.repeatable
    if error.retryable or error.kind in job.policy.retry_on or repeat_unsure:
        return next_attempt(job, error, now, random)
    return finish(job, Status.FAILED, f"failed:{error.kind}", now, error=error)


def begin_canceling(job: Job, ending: Ending, now: datetime) -> Transition:
    """From `running` or `waiting`: ask for the end where somebody can be asked."""
    if job.status is Status.RUNNING:  # its call is open, whatever the provider has told
        job = replace(job, phase=None)
    asked = replace(job, ending=ending)
    reason = "cancel_requested" if ending is Ending.CANCEL else "deadline"
    if job.phase is Phase.PROVIDER and not job.abilities.cancel:
        return end_canceling(asked, "cancel_not_supported", now)
    if job.phase is Phase.UNKNOWN and not (job.abilities.find or job.abilities.webhooks):
        return end_canceling(asked, "outcome_unknown", now)
    return move(
        asked,
        Status.CANCELING,
        reason,
        *chase(job),
        phase=job.phase,
        check_at=later(now, growing(0)),
    )


def with_ids(job: Job, result: Result, now: datetime) -> Result:
    """The result with an id on each file, and on those to collect the instant they expire, as far
    as it is known."""
    live = job.policy.files_live
    end = None if live is None else later(now, live)
    return result.with_artifacts(
        [
            replace(
                a,
                id=artifact_id(job.id, i),
                expires_at=a.expires_at or (end if a.status is Custody.PENDING else None),
            )
            for i, a in enumerate(result.artifacts)
        ]
    )
