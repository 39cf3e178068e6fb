"""A row of the inbox on its way through a turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentflow.core.events import Envelope
from agentflow.store.rows import Row
from agentflow.types import DEFAULT_TENANT
from agentflow.writer.commands import Command
from agentflow.writer.handlers import WebhookEvent, explain


@dataclass(slots=True)
class Letter:
    """One inbox row and what came of reading it."""

    row: Row
    run: str = ""
    """Set on a replay, so that its facts are not taken for repeats."""
    envelopes: list[Envelope] = field(default_factory=list)
    unmatched: set[str] = field(default_factory=set)
    event: WebhookEvent | None = None
    command: Command | None = None
    homes: dict[str, str] = field(default_factory=dict)
    """The tenants whose jobs it is about, each with the first such job."""
    status: str = "applied"
    reason: str | None = None
    error: str | None = None
    waits: bool = False
    """Its handlers had no time: the row stays as it is for the next turn."""
    unparked: list[int] = field(default_factory=list)
    """Rows of `agentflow_parked` that are answered by this."""

    @property
    def provider(self) -> str:
        name: str = self.row["provider"]
        return name

    @property
    def id(self) -> str:
        found: str = self.row["id"]
        return found

    def owner(self) -> tuple[str, str | None]:
        """Whose row it is, and about which job. What speaks of several tenants' jobs, or beside one
        of somebody unknown, is about none: only operators see it."""
        before, about = self.row["tenant"], self.row["job_id"]
        if not self.homes or self.status == "failed":
            return before, about
        shared = self.row["status"] == "applied" and about is None
        homes = ({before: about} if about else {}) | self.homes
        if shared or len(homes) > 1 or (self.unmatched and DEFAULT_TENANT not in homes):
            return DEFAULT_TENANT, None
        return homes.popitem()

    def judge(self, says_something: bool) -> None:
        """What the row is called after its facts were looked at."""
        if self.status == "failed":
            return
        if self.envelopes:
            self.status, self.reason = "applied", None
        elif self.unmatched:
            self.status, self.reason = "parked", "no_such_attempt"
        else:
            self.status = "ignored"
            self.reason = "no_such_attempt" if says_something else "unknown"

    def fail(self, error: BaseException | str) -> None:
        self.status, self.reason = "failed", "error"
        self.error = error if isinstance(error, str) else explain(error)
        self.envelopes.clear()
