"""How patient a job is. The policy of a task is copied onto each job when it is submitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentflow.errors import ErrorKind

_ABOVE_ZERO = (
    "timeout", "deadline", "lease", "poll_after", "poll_max", "poll_after_webhook", "backoff_max",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All durations are in seconds."""

    timeout: float = 60.0
    """One call of the task's function may take this long."""
    max_attempts: int = 3
    deadline: float = 3600.0
    """From submission (or the start time asked for) to the end, whatever happens."""
    repeatable: bool = False
    """Harmless to do twice: the call does not wait for the grant and is repeated when unsure."""
    on_unknown: Literal["fail", "retry", "ask"] = "fail"
    """What to do when nobody can tell whether an unrepeatable call took effect. `retry` may pay
    twice; `ask` leaves the job open for a person until its deadline."""
    retry_on: frozenset[ErrorKind] = frozenset()
    """Error kinds to retry besides those that say themselves that a retry can help."""
    backoff: float = 1.0
    """The first retry waits up to this long, the next twice as long (full jitter)."""
    backoff_max: float = 300.0
    poll_after: float = 5.0
    """First look at the provider when no webhook is expected; later looks grow apart."""
    poll_max: float = 60.0
    poll_after_webhook: float = 60.0
    """First look when a webhook is expected."""
    unknown_checks: int = 6
    """How often to look for a call whose outcome is unknown (after 2, 4, 8 … seconds, at most
    60 apart) before `on_unknown` decides."""
    cancel_checks: int = 6
    """How often a cancel is repeated, at the same distances, before it counts as unconfirmed."""
    collect_checks: int = 12
    """How often the copying of files is tried before those still missing count as lost. Files
    that say when they expire, or whose life is known, are tried until then instead."""
    files_live: float | None = None
    """How long the provider keeps the files of a result from its success on, for artifacts that
    do not say `expires_at` themselves. None: nobody knows."""
    lease: float = 15.0
    """A worker not heard of for this long is dead."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError("max_attempts is at least 1")
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is in seconds and above 0")
        if self.files_live is not None and not self.files_live > 0:
            raise ValueError("files_live is in seconds and above 0, or None")
        if not self.backoff >= 0:
            raise ValueError("backoff is in seconds and not below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a task's plugin can do besides the call itself, as of the submission."""

    webhooks: bool = False
    """A webhook is expected to come."""
    fetch: bool = False
    find: bool = False
    cancel: bool = False
