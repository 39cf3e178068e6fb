"""How long the copying of files is tried, and what becomes of those that never came.

A file that expires is worth trying until it does, however often that is, but not for ever: a day
after the job's deadline its owner wants an answer. One of which nobody knows how long it lives is
tried so often and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from agentflow.core.job import Job, Status
from agentflow.core.results import Artifact, Custody
from agentflow.core.transition import Effect, Ring, Transition, applied, finish, later, quiet

FARTHEST = 600.0
"""No two tries are further apart than this, in seconds."""

PATIENCE = timedelta(days=1)
"""So long after the deadline nobody waits for a file any more, however long its source lives."""

NOT_IN_TIME = "not copied in time"
EXPIRED = "expired at the provider before it could be copied"


def still_collecting(job: Job, now: datetime) -> Transition:
    """The alarm of a collecting job: ring for its files again, or end without those that are
    lost by now."""
    assert job.result is not None, "a collecting job has a result"
    result = job.result.with_artifacts([judged(job, a, now) for a in job.result.artifacts])
    if not result.uncollected:
        return finish(job, Status.SUCCEEDED, "artifacts_lost", now, result=result)
    ring = Ring(Effect.COLLECT, job.attempt)
    look = next_look(job, result.artifacts, now)
    after = replace(job, result=result, check_at=look, checks=job.checks + 1)
    if result == job.result:
        return quiet(after, "collecting", ring)
    return applied(after, "artifacts_lost", ring)


def judged(job: Job, artifact: Artifact, now: datetime) -> Artifact:
    """The file as it was, or lost.

    One that has expired gets one more try if the last was to be judged before it did: so long
    nobody looked, because the writer was away, and providers often delete late.
    """
    if artifact.status is not Custody.PENDING:
        return artifact
    end = end_of(job, artifact)
    if end is None:
        given_up = job.checks + 1 >= job.policy.collect_checks
    else:
        missed = job.check_at is not None and job.check_at < end
        given_up = now >= end and not missed
    note = EXPIRED if end is not None and end == artifact.expires_at else NOT_IN_TIME
    return replace(artifact, status=Custody.LOST, note=note) if given_up else artifact


def end_of(job: Job, artifact: Artifact) -> datetime | None:
    """When copying the file ceases to make sense; None if the number of tries decides."""
    if artifact.status is not Custody.PENDING or artifact.expires_at is None:
        return None
    return min(artifact.expires_at, job.deadline + PATIENCE)


def next_look(job: Job, artifacts: Sequence[Artifact], now: datetime) -> datetime:
    """When to ring again: looks grow apart to a twentieth of the time that is left, one minute at
    least and ten at most, and none is later than the end of a file."""
    ends = [end for a in artifacts if (end := end_of(job, a)) is not None and end > now]
    left = (min(ends) - now).total_seconds() if ends else 0.0
    most = min(max(60.0, left / 20), FARTHEST)
    wait = max(job.policy.lease, min(most, 2.0 ** min(job.checks + 2, 20)))
    return min([later(now, wait), *ends])
