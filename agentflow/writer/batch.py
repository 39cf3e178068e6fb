"""One batch: decide on everything in memory, then write only what was decided."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from agentflow.core.events import Envelope, dump_event, name_of
from agentflow.core.job import FINAL, Job, Phase, Status, patch_between
from agentflow.core.machine import MACHINE_VERSION, decide
from agentflow.core.transition import RANDOM_BYTES, RING_EVERY, Disposition, Ring, growing
from agentflow.store.inserts import ATTEMPT, HISTORY, attempt_values
from agentflow.store.rows import changed_columns, dumps
from agentflow.store.sql import Sql
from agentflow.types import JobId
from agentflow.writer.ledger import Closed, Ledger, calls_ended
from agentflow.writer.loading import Beside, existing, known_envelopes, load_jobs

_TIMERS = ("check_at", "checks", "wake_at")
_CHANGED = (
    "status",
    "reason",
    "phase",
    "ending",
    "attempt",
    "progress",
    "result",
    "error",
    "started_at",
    "finished_at",
    "check_at",
    "checks",
    "wake_at",
    "version",
)
POSTPONED = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Decided:
    """An entry of the history, for those who watch."""

    envelope: Envelope
    before: Job
    job: Job
    """As it was then."""
    disposition: Disposition
    reason: str
    trace: str | None


@dataclass(slots=True)
class Held:
    """A job in the writer's hands: as it was read, as it is now, and what is to be written."""

    before: Job
    job: Job
    beside: Beside
    entries: list[list[Any]] = field(default_factory=list)
    rings: list[Ring] = field(default_factory=list)
    news: list[tuple[str, Job]] = field(default_factory=list)
    """What handlers are for: (kind, the job as it was then)."""
    decided: list[Decided] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)
    """Calls that ended."""

    @property
    def learned(self) -> set[str]:
        """External ids that this batch brought."""
        old = {a.external_id for a in self.before.attempts}
        return {a.external_id for a in self.job.attempts if a.external_id} - old


class Batch:
    """The jobs of one transaction and the decisions on them."""

    def __init__(self, now: datetime, ledger: Ledger | None = None) -> None:
        """Without a `ledger` nothing is priced."""
        self.now = now
        self._ledger = ledger
        self.held: dict[JobId, Held] = {}
        self.seen: set[tuple[str, str]] = set()

    def hold(self, loaded: dict[JobId, tuple[Job, Beside]]) -> None:
        for id, (job, beside) in loaded.items():
            self.held.setdefault(id, Held(job, job, beside))

    async def read(self, sql: Sql, ids: set[JobId]) -> set[JobId]:
        """Lock and hold these jobs; return those that another writer has locked."""
        self.hold(await load_jobs(sql, ids))
        return await existing(sql, ids - self.held.keys()) if sql.postgres else set()

    async def know(self, sql: Sql, said: Sequence[Envelope]) -> None:
        """Learn which of these were applied before. Asked for after the rows were locked: what
        another writer did before is seen."""
        self.seen |= await known_envelopes(sql, [(e.job_id, e.id) for e in said])

    def job(self, id: JobId) -> Job | None:
        held = self.held.get(id)
        return held.job if held else None

    def apply(self, envelope: Envelope) -> str | None:
        """Decide on one envelope and return the reason; None if it was applied before, or its
        job is unknown. Raises what a bug in the machine raises, and then has changed nothing."""
        held = self.held.get(envelope.job_id)
        key = (envelope.job_id, envelope.id)
        if held is None or key in self.seen:
            return None
        random = secrets.token_bytes(RANDOM_BYTES)
        before = held.job
        envelope = self._priced(held, envelope)
        made = decide(before, envelope.event, self.now, random)
        self.seen.add(key)
        held.rings += made.rings
        if made.disposition is Disposition.QUIET:
            held.job = made.after
            return made.reason
        after = replace(made.after, version=before.version + 1)
        held.job = after
        held.entries.append(
            self._entry(envelope, before, after, made.disposition, made.reason, random)
        )
        held.decided.append(
            Decided(envelope, before, after, made.disposition, made.reason, held.beside.trace)
        )
        if made.disposition is Disposition.APPLIED:
            self._note_news(held, before, after)
            held.closed += calls_ended(before, after, envelope.event)
        return made.reason

    def _priced(self, held: Held, envelope: Envelope) -> Envelope:
        if self._ledger is None:
            return envelope
        event = self._ledger.priced(held.job, held.beside, envelope.event, self.now)
        return envelope if event is envelope.event else replace(envelope, event=event)

    def would_grant(self, claim: Envelope) -> bool:
        """Whether the call of this attempt would be granted by this claim, and was not before."""
        job = self.job(claim.job_id)
        waits = job is not None and job.status is Status.QUEUED and self.now < job.deadline
        new = (claim.job_id, claim.id) not in self.seen
        return bool(new and waits and job and job.attempt == claim.event.attempt)

    def beat(self, id: JobId, attempt: int) -> None:
        """The worker of this attempt lives: its alarm moves, nothing is written in the history."""
        held = self.held.get(id)
        if held is not None:
            held.job = extend_lease(held.job, attempt, self.now)

    def hold_back(self, id: JobId) -> None:
        """The claim of a queued job is not granted now: ring for it again before long."""
        held = self.held[id]
        again = self.now + timedelta(seconds=min(growing(held.job.checks), RING_EVERY))
        held.job = replace(held.job, check_at=again)

    def postpone(self, id: JobId) -> None:
        """Look at the job's alarm again in a minute: deciding on it failed."""
        held = self.held[id]
        held.job = replace(held.job, check_at=self.now + POSTPONED)

    async def write(self, sql: Sql, ids: Sequence[JobId]) -> None:
        """Write the jobs of these ids: rows, attempts, history."""
        chosen = [self.held[id] for id in ids]
        full = [h for h in chosen if h.entries]
        timed = [h for h in chosen if not h.entries and h.job != h.before]
        await sql.update(
            "agentflow_jobs",
            _CHANGED,
            ("id", "version"),
            [[*_values(h.job, _CHANGED), h.job.id, h.before.version] for h in full],
        )
        await sql.update(
            "agentflow_jobs",
            _TIMERS,
            ("id", "version"),
            [[*_values(h.job, _TIMERS), h.job.id, h.before.version] for h in timed],
        )
        await self._write_attempts(sql, full)
        await sql.insert("agentflow_history", HISTORY, [e for h in full for e in h.entries])

    async def _write_attempts(self, sql: Sql, chosen: Sequence[Held]) -> None:
        fresh: list[list[Any]] = []
        changed: list[list[Any]] = []
        for held in chosen:
            for i, a in enumerate(held.job.attempts):
                if i >= len(held.before.attempts):
                    fresh.append(attempt_values(held.job, a))
                elif held.before.attempts[i] != a:
                    values = [a.nonce, a.worker, a.external_id, a.started_at, a.account]
                    changed.append([*values, held.job.id, a.number])
        await sql.insert("agentflow_attempts", ATTEMPT, fresh)
        columns = ("nonce", "worker", "external_id", "started_at", "account")
        await sql.update("agentflow_attempts", columns, ("job_id", "number"), changed)

    def _entry(
        self,
        envelope: Envelope,
        before: Job,
        after: Job,
        disposition: Disposition,
        reason: str,
        random: bytes,
    ) -> list[Any]:
        return [
            after.id,
            before.version,
            after.tenant,
            envelope.id,
            envelope.source.value,
            name_of(envelope.event),
            dump_event(envelope.event),
            disposition.value,
            reason,
            after.status.value,
            dumps(patch_between(before, after)),
            dumps({"check_at": before.check_at, "checks": before.checks}),
            envelope.at,
            self.now,
            base64.b64encode(random).decode(),
            MACHINE_VERSION,
        ]

    def _note_news(self, held: Held, before: Job, after: Job) -> None:
        if after.status in FINAL:
            held.news.append((after.status.value, after))
        elif after.progress is not None and after.progress != before.progress:
            held.news.append(("progress", after))


def extend_lease(job: Job, attempt: int, now: datetime) -> Job:
    """The job with a fresh lease if this attempt is what its alarm listens for."""
    listening = job.status is Status.RUNNING or job.phase is Phase.COLLECTING
    if not listening or attempt != job.attempt or job.check_at is None:
        return job
    return replace(job, check_at=max(job.check_at, now + timedelta(seconds=job.policy.lease)))


def _values(job: Job, columns: Sequence[str]) -> list[Any]:
    values = changed_columns(job)
    return [values[c] for c in columns]
