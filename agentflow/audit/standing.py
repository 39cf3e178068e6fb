"""What holds for the row of a job whatever happened before."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TypeAlias

from agentflow.audit.finding import Finding, Kind
from agentflow.audit.told import TOLERANCE
from agentflow.core.job import Job, Phase, Status
from agentflow.core.results import Artifact, Custody, artifact_id
from agentflow.store.rows import Row, instant

LATE = timedelta(seconds=60)
"""What has been due for longer is done by nobody."""

Said: TypeAlias = tuple[Kind, str]


def standing_findings(row: Row, job: Job, now: datetime) -> Iterator[Finding]:
    """`job` is what the machine sees of the row."""
    for look in (_state(job), _times(job), _alarm(row, job), _artifacts(job), _key(row)):
        for kind, said in look:
            yield Finding(kind, job.id, None, said)
    if overdue(job, now):
        yield Finding(Kind.OVERDUE, job.id, None, f"{job.status}, due since {job.wake_at}")


def overdue(job: Job, now: datetime) -> bool:
    """Queued jobs may wait for room in the broker, but not past their deadline."""
    due = job.deadline if job.status is Status.QUEUED else job.wake_at
    return not job.final and due is not None and due < now - LATE


def _state(job: Job) -> Iterator[Said]:
    """The same rules the explorer holds every decision to."""
    status, result = job.status, job.result
    waits = status in (Status.WAITING, Status.CANCELING)
    wrong = [
        (job.phase is not None and not (waits or job.early), "a phase"),
        (status is Status.WAITING and job.phase is None, "no phase"),
        (status is Status.CANCELING and job.ending is None, "no ending"),
        (status is Status.SUCCEEDED and result is None, "no result"),
        (status is Status.SUCCEEDED and bool(result and result.uncollected), "files to collect"),
        (status is Status.FAILED and job.error is None, "no error"),
        (job.phase is Phase.COLLECTING and result is None, "no result to collect"),
        (not 1 <= job.attempt <= max(len(job.attempts), 1), f"attempt {job.attempt} in charge"),
        (len(job.attempts) > job.max_attempts, f"{len(job.attempts)} attempts"),
    ]
    for is_wrong, said in wrong:
        if is_wrong:
            yield Kind.STATE, f"{status} with {said}"


def _times(job: Job) -> Iterator[Said]:
    if job.final is not (job.finished_at is not None):
        yield Kind.FINISHED, f"{job.status}, finished at {job.finished_at}"
    started, finished = job.started_at, job.finished_at
    if started is not None and started < job.created_at - TOLERANCE:
        yield Kind.TIMES, f"started at {started}, made at {job.created_at}"
    if finished is not None and finished < (started or job.created_at) - TOLERANCE:
        yield Kind.TIMES, f"finished at {finished}, started at {started or job.created_at}"
    if job.deadline <= job.created_at:
        yield Kind.TIMES, f"due at {job.deadline}, made at {job.created_at}"


def _alarm(row: Row, job: Job) -> Iterator[Said]:
    """An alarm that is put off after a failure is that of `check_at`, even past the deadline."""
    wake_at = instant(row["wake_at"])
    if job.final is not (wake_at is None):
        yield Kind.ALARM, f"{job.status}, to wake at {wake_at}"
    elif wake_at not in (job.wake_at, job.check_at):
        yield Kind.ALARM, f"to wake at {wake_at} and not {job.wake_at}"


def _artifacts(job: Job) -> Iterator[Said]:
    for index, artifact in enumerate(job.result.artifacts if job.result else ()):
        if artifact.id != artifact_id(job.id, index):
            yield Kind.ARTIFACT, f"file {index} has not the id of its place"
        if artifact.status is Custody.STORED and not _kept(artifact):
            yield Kind.ARTIFACT, f"file {index} is in custody without key, digest or size"


def _kept(artifact: Artifact) -> bool:
    digest, size = artifact.sha256 or "", artifact.size
    return bool(artifact.key) and len(digest) == 64 and size is not None and size >= 0


def _key(row: Row) -> Iterator[Said]:
    if (row["idempotency_key"] is None) is not (row["request_hash"] is None):
        yield Kind.KEY, "an idempotency key and the digest of its request come together"
