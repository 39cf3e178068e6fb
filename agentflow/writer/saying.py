"""What the writer hears from workers, and says to them."""

from __future__ import annotations

from datetime import datetime

from agentflow.core.events import Envelope, Source, Started
from agentflow.core.job import Job, Status
from agentflow.core.transition import Effect, Ring
from agentflow.plugins.catalogue import Catalogue
from agentflow.store.rows import dumps, loads
from agentflow.transport.conversation import Beat, Chore, Claim, Denied, Granted, Heard, Message
from agentflow.writer.batch import Batch
from agentflow.writer.loading import Beside
from agentflow.writer.tools import Tools


def holds(paused: set[str], claim: Claim) -> bool:
    """Whether its task, or its provider, is among those that are paused."""
    return bool(paused & {claim.task, claim.task.partition(".")[0]})


def envelope_of(heard: Heard, now: datetime) -> Envelope | None:
    match heard.said:
        case Claim(job_id=job, attempt=attempt, nonce=nonce, worker=worker, account=account):
            event = Started(nonce, worker, account, attempt=attempt)
            return Envelope(f"claim:{attempt}:{nonce}", Source.WORKER, now, job, event)
        case Envelope():
            return heard.said
        case Beat():
            return None


def grant(batch: Batch, claim: Claim, tools: Tools) -> Granted | Denied:
    """The answer to a claim follows from the job as committed, so a repeated claim gets it too."""
    job = batch.job(claim.job_id)
    if job is None:
        return Denied("no_such_job")
    if job.status is not Status.RUNNING or job.attempt != claim.attempt:
        return Denied(job.status.value)
    if job.current.nonce != claim.nonce:
        return Denied("granted_to_another")
    webhooks = tools.catalogue.expects_webhooks(job.task)
    return Granted(job.policy.timeout, job.deadline, webhooks)


def message_of(job: Job, beside: Beside) -> Message:
    return Message(
        job.id, job.attempt, job.current.token, job.task, beside.input, job.deadline,
        beside.priority, beside.trace, job.tenant,
    )  # fmt: skip


_QUESTIONS = frozenset({Effect.FETCH, Effect.FIND, Effect.CANCEL})


def chore_of(job: Job, ring: Ring, beside: Beside, catalogue: Catalogue) -> Chore | None:
    """None where there is nothing to name to the provider yet."""
    attempt = job.numbered(ring.attempt)
    if attempt is None:
        return None
    external_id = ring.external_id or attempt.external_id
    if ring.effect in {Effect.FETCH, Effect.CANCEL} and external_id is None:
        return None
    task = catalogue.tasks.get(job.task)
    asks = ring.effect in _QUESTIONS and task is not None and task.asks_input
    artifacts = job.result.artifacts if job.result and ring.effect is Effect.COLLECT else ()
    return Chore(
        kind=ring.effect.value,
        job_id=job.id,
        attempt=ring.attempt,
        token=attempt.token,
        task=job.task,
        tenant=job.tenant,
        external_id=external_id,
        since=attempt.started_at or job.created_at,
        deadline=job.deadline,
        artifacts=[_plain(a) for a in artifacts],
        worker=attempt.worker,
        trace=beside.trace,
        account=attempt.account,
        input=beside.input if asks else None,
    )


def _plain(artifact: object) -> dict[str, object]:
    loaded: dict[str, object] = loads(dumps(artifact))
    return loaded
