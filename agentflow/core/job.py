"""A job as the machine sees it, and the sentence that belongs to each status."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from agentflow.core.policy import Abilities, Policy
from agentflow.core.results import ErrorInfo, Progress, Result
from agentflow.types import DEFAULT_TENANT, JobId, Token


class Status(StrEnum):
    """When a job is here, and who moves it on."""

    SCHEDULED = "scheduled"
    """A start time or a backoff lies ahead. The alarm moves it on."""
    QUEUED = "queued"
    """Ready, and no attempt granted. A worker's claim moves it on; the alarm rings again."""
    RUNNING = "running"
    """An attempt is granted and its lease fresh. The report moves it on; the alarm when silent."""
    WAITING = "waiting"
    """The provider has it, may have it, or its files are being collected. A webhook, a poll or a
    report moves it on."""
    CANCELING = "canceling"
    """A cancel or the deadline came while a call may be open. A report or a webhook moves it on;
    the alarm repeats the cancel, a bounded number of times."""
    SUCCEEDED = "succeeded"
    """Final: the result is stored and its files are in custody or known to be lost."""
    FAILED = "failed"
    """Final: the error says why."""
    CANCELED = "canceled"
    """Final: somebody asked for it."""
    EXPIRED = "expired"
    """Final: the deadline came first."""


FINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED})


class Phase(StrEnum):
    """What a waiting (or canceling) job waits for."""

    PROVIDER = "provider"
    """The provider has the work."""
    UNKNOWN = "submit_unknown"
    """The call may have reached the provider; its token, `find` or the policy decides."""
    COLLECTING = "collecting"
    """The outcome is stored; the files are being copied."""


class Ending(StrEnum):
    """Why a canceling job is to end."""

    CANCEL = "cancel"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. `token` routes its webhooks; `nonce` is the asking that was granted its call;
    `account` is the fingerprint of the key it is made with, where the provider has keys."""

    number: int
    token: Token
    nonce: str | None = None
    worker: str | None = None
    external_id: str | None = None
    started_at: datetime | None = None
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The whole of what decisions depend on.

    `check_at` and `checks` are timers, not history: when to look next in the present status, and
    how often that was done. `version` counts the entries of the history.
    """

    id: JobId
    task: str
    status: Status
    created_at: datetime
    deadline: datetime
    check_at: datetime | None
    tenant: str = DEFAULT_TENANT
    reason: str = "submitted"
    phase: Phase | None = None
    ending: Ending | None = None
    attempt: int = 1
    attempts: tuple[Attempt, ...]
    max_attempts: int = 3
    policy: Policy = field(default_factory=Policy)
    abilities: Abilities = field(default_factory=Abilities)
    progress: Progress | None = None
    result: Result | None = None
    error: ErrorInfo | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    checks: int = 0
    version: int = 1

    @property
    def provider(self) -> str:
        """Whose task it is: the part of its name before the first dot."""
        return self.task.split(".", 1)[0]

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def early(self) -> bool:
        """Whether the provider told of the work before its call has answered. It is asked after
        once its id is known."""
        calls_first = self.status is Status.QUEUED and self.policy.repeatable
        called = calls_first or self.status is Status.RUNNING
        return called and self.phase is Phase.PROVIDER

    @property
    def current(self) -> Attempt:
        return self.attempts[self.attempt - 1]

    @property
    def wake_at(self) -> datetime | None:
        """The one place where the alarm is derived: None exactly when the job is final."""
        if self.final:
            return None
        bounded = self.status is Status.CANCELING or self.phase is Phase.COLLECTING
        if bounded or self.check_at is None:
            return self.check_at or self.deadline
        return min(self.check_at, self.deadline)

    def numbered(self, attempt: int) -> Attempt | None:
        return self.attempts[attempt - 1] if 1 <= attempt <= len(self.attempts) else None

    def with_attempt(self, attempt: Attempt) -> Job:
        attempts = list(self.attempts)
        attempts[attempt.number - 1] = attempt
        return replace(self, attempts=tuple(attempts))


TIMERS = frozenset({"check_at", "checks"})
"""Fields that move without a line in the history."""

_PATCHED = [f.name for f in fields(Job) if f.name not in TIMERS | {"version"}]


def patch_between(before: Job | None, after: Job) -> dict[str, Any]:
    """The fields that changed; `attempts` as `{number: attempt}`. From nothing: every field."""
    patch: dict[str, Any] = {}
    for name in _PATCHED:
        old, new = getattr(before, name, None), getattr(after, name)
        if name == "attempts":
            changed = {
                str(a.number): a
                for i, a in enumerate(after.attempts)
                if before is None or i >= len(before.attempts) or before.attempts[i] != a
            }
            if changed:
                patch[name] = changed
        elif before is None or old != new:
            patch[name] = new
    return patch


def fold(patches: list[dict[str, Any]]) -> dict[str, Any]:
    """A row, as JSON values, from the JSON patches of its history in order."""
    row: dict[str, Any] = {"attempts": {}}
    for patch in patches:
        attempts = {**row["attempts"], **patch.get("attempts", {})}
        row = {**row, **patch, "attempts": attempts}
    return row
