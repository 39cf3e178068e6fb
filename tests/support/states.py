"""Jobs in every state, and everything that may be said about them: what the machine is shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from agentflow.core.events import (
    Abandoned,
    Accepted,
    Canceled,
    CancelRequested,
    Changed,
    Collected,
    Event,
    Failed,
    Progressed,
    Started,
    Submitted,
    Succeeded,
    Woke,
)
from agentflow.core.job import FINAL, Attempt, Ending, Job, Phase, Status
from agentflow.core.machine import decide
from agentflow.core.policy import Abilities
from agentflow.core.results import Artifact, Custody, Result
from agentflow.core.transition import RANDOM_BYTES, Effect, Transition
from agentflow.errors import OutcomeUnknown, ProviderFailure, RateLimited
from agentflow.types import JobId, Token

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DEADLINE = NOW + timedelta(hours=1)
LEAST, MOST = bytes(RANDOM_BYTES), b"\xff" * RANDOM_BYTES

ALL = Abilities(webhooks=True, fetch=True, find=True, cancel=True)
POLLED = Abilities(fetch=True, cancel=True)
PLAIN = Abilities()

CALLED = Attempt(1, Token("t1"), nonce="n1", worker="w1", started_at=NOW)
KNOWN = replace(CALLED, external_id="x1")
SECOND = Attempt(2, Token("t2"), nonce="n2", worker="w2", started_at=NOW)
FILE = Artifact("https://acme/a.png")
STORED = Artifact("https://acme/a.png", id="f0", status=Custody.STORED, key="k")


def seconds(value: float) -> datetime:
    return NOW + timedelta(seconds=value)


def job(status: Status = Status.RUNNING, **changes: Any) -> Job:
    """A job whose first attempt was granted, unless said otherwise."""
    given: dict[str, Any] = {
        "id": JobId("job_" + "0" * 32),
        "task": "acme.make",
        "status": status,
        "created_at": NOW,
        "deadline": DEADLINE,
        "check_at": None if status in FINAL else seconds(15),
        "attempts": (CALLED,),
        "abilities": ALL,
    }
    return Job(**given | changes)


def queued(**changes: Any) -> Job:
    return job(Status.QUEUED, **{"attempts": (Attempt(1, Token("t1")),)} | changes)


def scheduled(**changes: Any) -> Job:
    return job(Status.SCHEDULED, **{"attempts": (Attempt(1, Token("t1")),)} | changes)


def waiting(phase: Phase = Phase.PROVIDER, **changes: Any) -> Job:
    known = (CALLED if phase is Phase.UNKNOWN else KNOWN,)
    return job(Status.WAITING, **{"phase": phase, "attempts": known} | changes)


def collecting(*files: Artifact, **changes: Any) -> Job:
    named = [replace(f, id=f"f{i}") for i, f in enumerate(files or (FILE,))]
    return waiting(Phase.COLLECTING, result=Result(artifacts=named), **changes)


def canceling(**changes: Any) -> Job:
    return job(Status.CANCELING, **{"ending": Ending.CANCEL} | changes)


def retried(status: Status = Status.RUNNING, **changes: Any) -> Job:
    """In its second attempt, the first one's fate unknown."""
    return job(status, **{"attempt": 2, "attempts": (CALLED, SECOND)} | changes)


def told(job: Job, event: Event, *, now: datetime = NOW, random: bytes = LEAST) -> Transition:
    return decide(job, event, now, random)


def woken(job: Job, *, random: bytes = LEAST) -> Transition:
    """When the alarm is due."""
    assert job.wake_at is not None
    return decide(job, Woke(), job.wake_at, random)


def after(job: Job, *events: Event, **how: Any) -> Job:
    for event in events:
        job = told(job, event, **how).after
    return job


def effects(transition: Transition) -> list[Effect]:
    return [ring.effect for ring in transition.rings]


def failed(error: ProviderFailure, attempt: int = 1, **more: Any) -> Failed:
    return Failed(error, attempt=attempt, **more)


def started(nonce: str = "n1", attempt: int = 1) -> Started:
    return Started(nonce, "w1", attempt=attempt)


def accepted(external_id: str = "x1", attempt: int = 1, **more: Any) -> Accepted:
    return Accepted(external_id, attempt=attempt, **more)


def succeeded(attempt: int = 1, *files: Artifact, **more: Any) -> Succeeded:
    return Succeeded(result=Result("done", artifacts=files), attempt=attempt, **more)


OPEN = {
    "scheduled": scheduled(),
    "queued": queued(),
    "running": job(),
    "told_of": job(phase=Phase.PROVIDER),
    "waiting": waiting(),
    "unknown": waiting(Phase.UNKNOWN),
    "collecting": collecting(),
    "canceling": canceling(),
    "canceling_known": canceling(phase=Phase.PROVIDER, attempts=(KNOWN,)),
    "canceling_unknown": canceling(phase=Phase.UNKNOWN),
}
ENDED = {status.value: job(status, error=None, result=Result()) for status in sorted(FINAL)}
EVENTS: dict[str, Event] = {
    "submitted": Submitted(),
    "started": started("n9"),
    "accepted": accepted(),
    "accepted_news": accepted("x9"),
    "progressed": Progressed(0.5, attempt=1, external_id="x1"),
    "changed": Changed(attempt=1, external_id="x1"),
    "changed_early": Changed(attempt=1),
    "succeeded": succeeded(),
    "failed": failed(RateLimited()),
    "unsure": failed(OutcomeUnknown()),
    "canceled": Canceled(attempt=1),
    "collected": Collected(attempt=1, artifacts=[STORED]),
    "handed_back": Abandoned(attempt=1, called=False),
    "gave_up": Abandoned(attempt=1, called=True),
    "cancel_requested": CancelRequested(),
    "woke": Woke(),
}
