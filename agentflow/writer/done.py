"""What a turn has done, and what is to follow its commit."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentflow.core.job import Status
from agentflow.core.submission import NewJob
from agentflow.core.transition import Effect
from agentflow.plugins.catalogue import Catalogue
from agentflow.transport.conversation import Chore, Denied, Granted, Heard, Message
from agentflow.types import JobId
from agentflow.writer.batch import Decided, Held
from agentflow.writer.letter import Letter
from agentflow.writer.saying import chore_of, message_of

_LISTS = (
    *("answers", "given_back", "messages", "chores", "changed", "new_jobs"),
    *("decided", "read"),
)


@dataclass(slots=True)
class Done:
    answers: list[tuple[Heard, Granted | Denied | None]] = field(default_factory=list)
    given_back: list[Heard] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    chores: list[Chore] = field(default_factory=list)
    changed: list[JobId] = field(default_factory=list)
    new_jobs: list[NewJob] = field(default_factory=list)
    look_again: set[tuple[str, str]] = field(default_factory=set)
    """(provider, external id) pairs to match once more after the commit: another writer may have
    parked, or learned, the same id in a transaction that did not see this one."""
    decided: list[Decided] = field(default_factory=list)
    read: list[Letter] = field(default_factory=list)
    woken: int = 0
    """Jobs whose alarm went off."""
    paused_changed: bool = False
    owed: bool = False
    more: bool = False
    """There is more to do at once."""
    crowded: bool = False
    """Another writer held a row this turn was about."""

    def add(self, other: Done) -> None:
        for name in _LISTS:
            getattr(self, name).extend(getattr(other, name))
        self.woken += other.woken
        self.look_again |= other.look_again
        self.paused_changed |= other.paused_changed
        self.owed |= other.owed
        self.more |= other.more
        self.crowded |= other.crowded

    def written(self, held: Held, catalogue: Catalogue) -> None:
        """This job was written: who follows it is told, and its rings go out."""
        self.decided += held.decided
        if held.entries:
            self.changed.append(held.job.id)
        for ring in dict.fromkeys(held.rings):
            if ring.effect is Effect.CALL:
                if held.job.status is Status.QUEUED and ring.attempt == held.job.attempt:
                    self.messages.append(message_of(held.job, held.beside))
            else:
                chore = chore_of(held.job, ring, held.beside, catalogue)
                if chore is not None:
                    self.chores.append(chore)
        if held.job.status is Status.QUEUED and held.before.status is Status.RUNNING:
            self.messages.append(message_of(held.job, held.beside))
