"""What the writer works with besides the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agentflow.core.submission import JobSpec, NewJob
from agentflow.plugins.catalogue import Catalogue
from agentflow.writer.handlers import Handlers
from agentflow.writer.turns import Turns

Prepare = Callable[[JobSpec, str], NewJob]
"""Checks what a handler wants to start, for a tenant."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a turn works with. `handler_budget` and `handler_timeout` are in seconds."""

    catalogue: Catalogue
    handlers: Handlers
    prepare: Prepare
    room: Callable[[str], int]
    """How many more messages of a provider the broker takes."""
    handler_budget: float
    handler_timeout: float
    park_for: float
    turns: Turns = field(default_factory=Turns)

    def rooms(self, paused: set[str]) -> dict[str, int]:
        """How many messages the queue of each provider takes that is not paused."""
        return {q: self.room(q) for q in self.catalogue.providers if q not in paused}
