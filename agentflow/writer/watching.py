"""What a turn did, told after its commit to those who watch: numbers, spans, lines in the log."""

from __future__ import annotations

import logging

import structlog

from agentflow.core.events import Envelope, name_of
from agentflow.core.job import FINAL
from agentflow.core.results import Custody
from agentflow.core.transition import Disposition
from agentflow.store.rows import loads
from agentflow.telemetry import traces
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.conversation import Beat, Claim, Granted
from agentflow.writer.batch import Decided
from agentflow.writer.done import Done
from agentflow.writer.letter import Letter

log = structlog.get_logger(__name__)

_logger = logging.getLogger(__name__)
"""Asked first: there is a line for every decision, and mostly nobody wants it."""


def watch(metrics: Metrics, done: Done, began: int, ended: int) -> None:
    """`began` and `ended`, just after the commit, are nanoseconds of `time.time_ns`."""
    _count(metrics, done, (ended - began) / 1e9)
    causes = {e.id: letter for letter in done.read for e in letter.envelopes}
    finals, every = _logger.isEnabledFor(logging.INFO), _logger.isEnabledFor(logging.DEBUG)
    for decided in done.decided:
        if decided.disposition is Disposition.APPLIED:
            job = decided.job
            metrics.transitions[metrics.task(job.task), job.status.value, decided.reason].inc()
            _count_files(metrics, decided)
            if decided.trace is not None:
                _span(decided, decided.trace, causes.get(decided.envelope.id), began, ended)
        if finals:
            _tell(decided, every=every)


def _count(metrics: Metrics, done: Done, seconds: float) -> None:
    metrics.turn_seconds.observe(seconds)
    metrics.turn_size.observe(len(done.answers) + len(done.read) + done.woken)
    metrics.alarms.inc(done.woken)
    if done.crowded:
        metrics.crowded.inc()
    for each, answer in done.answers:
        metrics.heard[(_kind(each.said),)].inc()
        if isinstance(each.said, Claim):
            granted = isinstance(answer, Granted)
            metrics.claims[("granted" if granted else "denied",)].inc()
    for letter in done.read:
        metrics.inbox[letter.row["kind"], letter.status].inc()
    for new in done.new_jobs:
        metrics.submitted[(metrics.task(new.job.task),)].inc()


def _count_files(metrics: Metrics, decided: Decided) -> None:
    """Those that came into custody by this decision, or were lost."""
    task = metrics.task(decided.job.task)
    known = set(decided.before.result.artifacts) if decided.before.result else set()
    for file in decided.job.result.artifacts if decided.job.result else ():
        if file.status is Custody.PENDING or file in known:
            continue
        metrics.artifacts[task, file.status.value].inc()
        if file.status is Custody.STORED:
            metrics.artifact_bytes[(task,)].inc(file.size or 0)


def _kind(said: Claim | Envelope | Beat) -> str:
    match said:
        case Claim():
            return "claim"
        case Beat():
            return "beat"
        case Envelope():
            return name_of(said.event)


def _span(decided: Decided, trace: str, letter: Letter | None, began: int, ended: int) -> None:
    """From the beginning of the turn to its commit. A delivery was received in a span of its own,
    which may lie in another trace."""
    cause = loads(letter.row["headers"]).get(traces.HEADER) if letter else None
    job = decided.job
    traces.past(
        f"apply {name_of(decided.envelope.event)}",
        trace,
        began=began,
        ended=ended,
        cause=cause,
        job_id=job.id,
        attempt=job.attempt,
        task=job.task,
        status=job.status.value,
        reason=decided.reason,
    )


def _tell(decided: Decided, *, every: bool) -> None:
    """One line for each final job; with `every`, for everything decided."""
    job = decided.job
    ended = decided.disposition is Disposition.APPLIED and job.status in FINAL
    if not (ended or every):
        return
    about = {
        "job_id": job.id,
        "task": job.task,
        "attempt": job.attempt,
        "tenant": job.tenant,
        "reason": decided.reason,
    }
    if ended:
        log.info(f"Job {job.status}", **about)
    else:
        event, disposition = name_of(decided.envelope.event), decided.disposition.value
        log.debug("Decided", event_name=event, disposition=disposition, status=job.status, **about)
