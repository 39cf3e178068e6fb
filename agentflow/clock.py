"""What time it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from agentflow.types import utcnow


class Clock:
    """The time: this machine's, or a database's that it follows. Tests may advance it."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self._followed: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        """Aware, in UTC."""
        if self._followed is None:
            return utcnow() + self._ahead
        said, heard = self._followed
        return said + timedelta(seconds=time.monotonic() - heard) + self._ahead

    def follow(self, now: datetime) -> datetime:
        """Set it by somebody else's clock, which says `now`; whatever this machine's own says."""
        self._followed = (now.astimezone(UTC), time.monotonic())
        return self.now()

    def advance(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)
