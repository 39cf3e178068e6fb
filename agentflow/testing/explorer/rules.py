"""What must hold whatever happens, and which jobs are the same for every decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from agentflow.core.events import Event, Succeeded, Woke
from agentflow.core.job import Job, Phase, Status, patch_between
from agentflow.core.results import Custody, ErrorInfo
from agentflow.core.transition import Disposition, Effect, Ring, Transition
from agentflow.testing.explorer.world import Work, World
from agentflow.types import Token


class Broken(AssertionError):
    """A rule does not hold."""


def faults(job: Job, event: Event, transition: Transition) -> Iterator[str]:
    """The rules that one decision breaks."""
    after = transition.after
    patch = patch_between(job, after)
    yield from _disposition_faults(job, transition, bool(patch))
    if (after.wake_at is None) is not after.final:
        yield "an open job has an alarm and a final one has none"
    if isinstance(event, Woke) and not job.final and after == job:
        yield "an alarm changes something"
    waits = after.status in (Status.WAITING, Status.CANCELING)
    if after.phase and not (waits or after.early):
        yield "only who waits has a phase, or was told of early"
    if after.status is Status.WAITING and after.phase is None:
        yield "who waits knows for what"
    if after.status is Status.CANCELING and after.ending is None:
        yield "who cancels knows why"
    if after.status is Status.SUCCEEDED and (after.result is None or after.result.uncollected):
        yield "success has its result and its files"
    if after.status is Status.FAILED and after.error is None:
        yield "failure has its error"
    yield from _result_faults(job, event, after)
    yield from _attempt_faults(job, after)
    yield from _notice_faults(job, transition)


def _notice_faults(job: Job, transition: Transition) -> Iterator[str]:
    after = transition.after
    told = job.phase is Phase.PROVIDER and (
        job.status is not Status.WAITING or job.current.external_id is None
    )
    waits = (after.status, after.phase) == (Status.WAITING, Phase.PROVIDER)
    can = after.abilities.fetch and after.current.external_id is not None
    if told and waits and can and Ring(Effect.FETCH, after.attempt) not in transition.rings:
        yield "work that was told of is asked after once its id is known"


def _result_faults(job: Job, event: Event, after: Job) -> Iterator[str]:
    if isinstance(event, Succeeded) and after != job and after.result is None:
        yield "a result that is heard is kept"
    if job.result and after.result:
        stored = [a for a in job.result.artifacts if a.status is Custody.STORED]
        if any(a not in after.result.artifacts for a in stored):
            yield "a file in custody stays there"


def file_faults(job: Job, after: Job, now: datetime) -> Iterator[str]:
    """`after` is what an event at `now` made of the job. That somebody said a file is lost is no
    judgment of ours."""
    if job.result is None or after.result is None:
        return
    for old, new in zip(job.result.artifacts, after.result.artifacts, strict=True):
        given_up = new.note is not None and old.note is None
        if given_up and old.expires_at is not None and now < old.expires_at:
            yield "a file is not given up while its provider has it"


def _disposition_faults(job: Job, transition: Transition, patched: bool) -> Iterator[str]:
    after = transition.after
    if job.final and after != job:
        yield "final is final"
    match transition.disposition:
        case Disposition.IGNORED if after != job:
            yield "what is ignored changes nothing"
        case Disposition.QUIET if patched:
            yield "no change without history"
        case Disposition.APPLIED if not patched:
            yield "no history without a change"


def _attempt_faults(job: Job, after: Job) -> Iterator[str]:
    if len(after.attempts) > after.max_attempts:
        yield "no more attempts than allowed"
    if not 1 <= after.attempt <= len(after.attempts):
        yield "the attempt in charge is one of the attempts"
    for old, new in zip(job.attempts, after.attempts, strict=False):
        if old.token != new.token or (old.external_id and old.external_id != new.external_id):
            yield "an attempt keeps its token and its external id"
    was, now = (j.progress.fraction if j.progress else None for j in (job, after))
    if after.attempt == job.attempt and was is not None and (now is None or now < was):
        yield "progress never goes back"


def call_faults(world: World, runs: Sequence[int], works: Sequence[int]) -> Iterator[str]:
    """A paid call is made at most once per attempt, and never blindly repeated. `runs` are the
    attempts of the works."""
    if world.repeatable:
        return
    called = [attempt for attempt, w in zip(runs, works, strict=True) if w & Work.CALLED]
    if len(set(called)) < len(called):
        yield "an attempt's call is made at most once"
    unsure = [
        attempt
        for attempt, w in zip(runs, works, strict=True)
        if w & Work.CALLED and not w & (Work.REFUSED | Work.FAILED)
    ]
    if world.on_unknown != "retry" and any(attempt < max(called) for attempt in unsure):
        yield "a call is not repeated while nobody knows what became of it"


def result_faults(job: Job, runs: Sequence[int]) -> Iterator[str]:
    """The result is that of the attempt in charge. Its output is the number of the run."""
    if job.result is not None and runs[job.result.output] != job.attempt:
        yield "the attempt in charge delivered the result"


def stray_faults(world: World, works: Sequence[int]) -> Iterator[str]:
    """Of a job that has ended: work that was heard of is over, or asked to stop."""
    if not world.cancel or world.repeatable:
        return
    for work in works:
        if work & Work.TOLD and not work & (Work.ENDED | Work.ASKED):
            yield "nothing goes on at the provider for nobody"


def canonical(job: Job) -> Job:
    """The job without what no decision depends on. Of `check_at` remains whether it comes before
    the deadline, or before the end of the files it collects."""
    collecting = job.phase is Phase.COLLECTING
    bounded = job.status is Status.CANCELING or collecting
    counted = bounded or job.phase is Phase.UNKNOWN
    policy, check_at = job.policy, job.check_at
    most = max(policy.unknown_checks, policy.cancel_checks, policy.collect_checks)
    if check_at is not None:
        soon = check_at < files_end(job) if collecting else bounded or check_at < job.deadline
        check_at = job.created_at + (job.deadline - job.created_at) / 2 if soon else job.deadline
    attempts = (
        replace(a, token=Token(f"token{a.number}"), worker=None, started_at=None)
        for a in job.attempts
    )
    return replace(
        job,
        reason="",
        check_at=check_at,
        checks=min(job.checks, most) if counted else 0,
        attempts=tuple(attempts),
        started_at=None,
        finished_at=None,
        error=job.error and ErrorInfo(job.error.kind, ""),
    )


def files_end(job: Job) -> datetime:
    """When the first file to collect is lost, if that is ever."""
    files = job.result.artifacts if job.result else ()
    ends = [a.expires_at for a in files if a.status is Custody.PENDING and a.expires_at]
    return min(ends, default=job.deadline + timedelta(days=999))


def brief(job: Job) -> str:
    """What differs from job to job."""
    shown = ("status", "phase", "ending", "attempt", "check_at", "checks", "progress", "error")
    said = ", ".join(f"{name}={getattr(job, name)}" for name in shown if getattr(job, name))
    tries = " ".join(f"{a.number}:{a.nonce}:{a.external_id}" for a in job.attempts)
    return f"{said}, attempts {tries}"
