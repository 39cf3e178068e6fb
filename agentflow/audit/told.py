"""What a history tells, and whether it tells it in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from agentflow.audit.entry import Entry, entry_from
from agentflow.audit.finding import Finding, Kind
from agentflow.audit.replay import Replay
from agentflow.store.rows import Row

TOLERANCE = timedelta(seconds=5)
"""By so much clocks of several machines differ, and one of them jumps when it is set."""


class Told:
    """The history of one job; `whole` once it was read from entry 0 to its end."""

    def __init__(self, job_id: str, now: datetime) -> None:
        self.replay = Replay(job_id)
        self.whole = False
        self._id, self._now = job_id, now
        self._last: Entry | None = None
        self._envelopes: set[str] = set()

    def findings(self, history: Sequence[Row]) -> Iterator[Finding]:
        """Nothing is raised; the first entry that cannot be read is the last one looked at."""
        for row in history:
            try:
                entry = entry_from(row)
                yield from self._order(entry)
                if self._last is None:
                    yield from self.replay.begin(entry)
                else:
                    yield from self.replay.take(entry)
            except Exception as error:  # a stranger wrote this row: it may hold anything
                said = f"the entry cannot be read: {error!r}"[:300]
                yield Finding(Kind.UNREADABLE, self._id, row["seq"], said)
                return
            self._last = entry
        self.whole = self.replay.begun

    def _order(self, entry: Entry) -> Iterator[Finding]:
        if entry.decided_at > self._now + TOLERANCE:
            yield self._found(Kind.CLOCK, entry, f"decided at {entry.decided_at}, in the future")
        if self._last is None:
            self._envelopes.add(entry.envelope_id)
            return
        expected = self._last.seq + 1
        if entry.envelope_id in self._envelopes or entry.seq < expected:
            yield self._found(Kind.REPEATED, entry, "its number or envelope was there before")
        self._envelopes.add(entry.envelope_id)
        if entry.seq > expected:
            self.replay.broken = True
            missing = f"{expected}" + (f" to {entry.seq - 1}" if entry.seq - 1 > expected else "")
            yield self._found(Kind.GAP, entry, f"entry {missing} is missing")
        if entry.decided_at < self._last.decided_at - TOLERANCE:
            said = f"decided at {entry.decided_at}, the one before at {self._last.decided_at}"
            yield self._found(Kind.CLOCK, entry, said)

    def _found(self, kind: Kind, entry: Entry, detail: str) -> Finding:
        return Finding(kind, self._id, entry.seq, detail)
