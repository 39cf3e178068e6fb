"""A history lived through again: folded entry by entry, and each decision made once more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agentflow.audit.entry import Entry
from agentflow.audit.finding import Finding, Kind
from agentflow.core.events import Started, Submitted, name_of
from agentflow.core.job import FINAL, Job, Status, fold, patch_between
from agentflow.core.machine import MACHINE_VERSION, decide
from agentflow.core.transition import Disposition
from agentflow.store.rows import JOB_COLUMNS, attempt_from, dumps, instant, job_from, loads
from agentflow.types import JsonObject

TOLD = frozenset(JOB_COLUMNS) - {"check_at", "checks", "version"} | {"attempts"}
"""What entry 0 says of a job."""


class Replay:
    """`row` is what the entries so far fold to; `checks` the least the next one may count."""

    def __init__(self, job_id: str) -> None:
        self.row: JsonObject = {"attempts": {}}
        self.checks = 0
        self.broken = False
        """Entries are missing: from here on nothing can be decided again."""
        self.decided_again = 0
        self._id = job_id
        self._job: Job | None = None
        self._granted: dict[int, str] = {}

    @property
    def begun(self) -> bool:
        """Whether the history tells of the whole job."""
        return "id" in self.row

    @property
    def ended(self) -> bool:
        return self.row.get("status") in FINAL

    def begin(self, entry: Entry) -> Iterator[Finding]:
        """Entry 0. Raises `ValueError` for a job that cannot be."""
        if entry.seq or not isinstance(entry.event, Submitted):
            self.broken = True
            said = f"it begins with {name_of(entry.event)} as entry {entry.seq}"
            yield self._found(Kind.NOT_SUBMITTED, entry, said)
            return
        missing = sorted(TOLD - entry.patch.keys())
        if missing:
            self.broken = True
            yield self._found(Kind.NOT_SUBMITTED, entry, f"it lacks {', '.join(missing)}")
        elif not self._submitted(entry):
            said = "id, reason or time are not those of its own patch"
            yield self._found(Kind.NOT_SUBMITTED, entry, said)
        yield from self._labels(entry)
        self._fold(entry)

    def _submitted(self, entry: Entry) -> bool:
        told = entry.patch["id"], entry.patch["reason"], instant(entry.patch["created_at"])
        return told == (self._id, entry.reason, entry.decided_at)

    def take(self, entry: Entry) -> Iterator[Finding]:
        """Any later entry. Raises `ValueError` for a patch no job can take."""
        yield from self._labels(entry)
        yield from self._timers(entry)
        yield from self._grants(entry)
        yield from self._identities(entry)
        if self.ended and entry.disposition is Disposition.APPLIED:
            yield self._found(Kind.AFTER_END, entry, f"applied to a job that was {self._status}")
        self.checks = entry.checks
        if entry.random is None:
            yield self._found(Kind.RANDOM, entry, "32 bytes in base64 are expected")
        elif entry.machine == MACHINE_VERSION and not self.broken and self._job is not None:
            yield from self._decide(entry, self._job, entry.random)
        self._fold(entry)

    def _decide(self, entry: Entry, job: Job, random: bytes) -> Iterator[Finding]:
        before = replace(job, check_at=entry.check_at, checks=entry.checks, version=entry.seq)
        self.decided_again += 1
        try:
            made = decide(before, entry.event, entry.decided_at, random)
        except Exception as error:  # no job of ours gets the machine to raise
            yield self._found(Kind.DECIDED_OTHERWISE, entry, f"the machine raises {error!r}")
            return
        self.checks = made.after.checks
        decided, told = (made.disposition, made.reason), (entry.disposition, entry.reason)
        if decided != told:
            said = f"{' '.join(told)} is now {' '.join(decided)}"
            yield self._found(Kind.DECIDED_OTHERWISE, entry, said)
            return
        patch: JsonObject = loads(dumps(patch_between(before, made.after)))
        if patch != entry.patch:
            names = sorted(n for n in patch.keys() | entry.patch if differ(patch, entry.patch, n))
            said = f"another patch of {', '.join(names)}"
            yield self._found(Kind.DECIDED_OTHERWISE, entry, said)

    def _fold(self, entry: Entry) -> None:
        if not entry.patch and self._job is not None:
            return
        self.row = fold([self.row, entry.patch])
        if self.broken:
            return
        attempts = sorted(map(attempt_from, self.row["attempts"].values()), key=lambda a: a.number)
        timers = {"check_at": entry.check_at, "checks": entry.checks, "version": entry.seq + 1}
        self._job = job_from({**self.row, **timers}, attempts)

    def _labels(self, entry: Entry) -> Iterator[Finding]:
        """What an entry says of itself, whichever machine made it."""
        if entry.machine > MACHINE_VERSION:
            said = f"by machine {entry.machine}, and this is {MACHINE_VERSION}"
            yield self._found(Kind.NEWER_MACHINE, entry, said)
        status = entry.patch.get("status", self._status)
        if entry.status != status:
            said = f"it says {entry.status} where it leads to {status}"
            yield self._found(Kind.MISLABELED, entry, said)
        if bool(entry.patch) is not (entry.disposition is Disposition.APPLIED):
            changes = "changes something" if entry.patch else "changes nothing"
            said = f"it is called {entry.disposition} and {changes}"
            yield self._found(Kind.MISLABELED, entry, said)

    def _timers(self, entry: Entry) -> Iterator[Finding]:
        """Between entries checks are counted, and what has ended keeps still."""
        if entry.checks < self.checks:
            said = f"{entry.checks} checks after {self.checks}"
            yield self._found(Kind.TIMERS, entry, said)
        elif self.ended and (entry.check_at, entry.checks) != (None, 0):
            yield self._found(Kind.TIMERS, entry, "an ended job is to be looked at")

    def _grants(self, entry: Entry) -> Iterator[Finding]:
        """A call is granted once, and again only after its grant was handed back unused."""
        if entry.disposition is not Disposition.APPLIED:
            return
        attempt = entry.event.attempt
        if isinstance(entry.event, Started):
            if attempt in self._granted:
                said = f"attempt {attempt} was granted before"
                yield self._found(Kind.GRANTED_TWICE, entry, said)
            self._granted[attempt] = entry.event.nonce
        elif entry.reason == "handed_back":
            self._granted.pop(attempt, None)

    def _identities(self, entry: Entry) -> Iterator[Finding]:
        for number, after in entry.patch.get("attempts", {}).items():
            before = self.row["attempts"].get(number)
            if before is None:
                continue
            if after["token"] != before["token"]:
                yield self._found(Kind.IDENTITY, entry, f"another token of attempt {number}")
            if before["external_id"] not in (None, after["external_id"]):
                yield self._found(Kind.IDENTITY, entry, f"another external id of attempt {number}")

    @property
    def _status(self) -> Status | None:
        return self.row.get("status")

    def _found(self, kind: Kind, entry: Entry, detail: str) -> Finding:
        return Finding(kind, self._id, entry.seq, detail)


def differ(one: JsonObject, other: JsonObject, name: str) -> bool:
    return name not in one or name not in other or one[name] != other[name]
