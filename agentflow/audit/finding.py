"""What an audit can find."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong. `WARNINGS` say what may be right after all; the rest cannot be."""

    NO_HISTORY = "no_history"
    """A job has no history."""
    NOT_SUBMITTED = "not_submitted"
    """A history does not begin with a whole and true `submitted` as number 0."""
    GAP = "gap"
    """A number is missing in a history; what follows cannot be decided again."""
    VERSION = "version"
    """A job's `version` is not the number of its entries."""
    REPEATED = "repeated"
    """Two entries of a history have one number or one envelope id."""
    UNREADABLE = "unreadable"
    """A row or an entry holds what agentflow never writes there."""
    MISLABELED = "mislabeled"
    """An entry's status or disposition does not fit its own patch."""
    AFTER_END = "after_end"
    """Something was applied to a job that had ended."""
    RANDOM = "random"
    """An entry lacks the 32 bytes of randomness its decision was given."""
    DECIDED_OTHERWISE = "decided_otherwise"
    """The machine of this version decides otherwise on the same event, time and randomness."""
    TIMERS = "timers"
    """The count of checks went back, or an ended job has timers."""
    GRANTED_TWICE = "granted_twice"
    """One attempt's call was granted twice without being handed back in between."""
    IDENTITY = "identity"
    """An attempt's token, or an external id once known, changed."""
    CLOCK = "clock"
    """Warning: an entry was decided over 5 seconds before the one before it, or in the future."""
    NEWER_MACHINE = "newer_machine"
    """Warning: an entry was decided by a newer version than this one, which cannot judge it."""

    ROW_CHANGED = "row_changed"
    """A column of a job is not what its history folds to: it was changed outside the writer."""
    ATTEMPT_CHANGED = "attempt_changed"
    """A column of an attempt is not what the history folds to."""
    ATTEMPTS = "attempts"
    """The attempts of a job are not those of its history, numbered from 1."""
    ALARM = "alarm"
    """An open job has no alarm, an ended one has one, or it is not the one that follows."""
    FINISHED = "finished"
    """An ended job does not say when, or an open one does."""
    TIMES = "times"
    """A job was started before it was made, ended before it was started, or due before both."""
    STATE = "state"
    """Status, phase, ending, attempt, result and error of a job do not go together."""
    ARTIFACT = "artifact"
    """A file in custody lacks its key, digest or size, or bears another job's id."""
    TAGS = "tags"
    """The tags to search by are not those of the job."""
    TENANT = "tenant"
    """Rows of one job belong to several tenants."""
    KEY = "key"
    """An idempotency key without the digest of its request, or the reverse."""
    SAME_KEY = "same_key"
    """Two jobs of one tenant have the same idempotency key."""
    SAME_TOKEN = "same_token"
    """Two attempts have the same token."""
    ORPHAN = "orphan"
    """Attempts, history or tags of a job that is not there."""

    LEDGER = "ledger"
    """The ledger says otherwise than the job what a call cost, or tells of a call there was not."""
    BUDGET = "budget"
    """What a budget has set aside is not what calls under way have reserved."""

    DELIVERY = "delivery"
    """An inbox row is `applied` to a job whose history does not know it."""
    INBOX = "inbox"
    """The kind, status and times of an inbox row do not go together."""
    PARKED = "parked"
    """A parked delivery nothing will wake or match, or a match to be made for none."""
    RUN = "run"
    """The status and times of a handler's run do not go together."""
    OVERDUE = "overdue"
    """Warning: work has been due for more than a minute. Is a server running?"""


WARNINGS = frozenset({Kind.CLOCK, Kind.NEWER_MACHINE, Kind.OVERDUE})


@dataclass(frozen=True, slots=True)
class Finding:
    """`id` is that of the job, or of the inbox row or run; `seq` the number of the entry."""

    kind: Kind
    id: str
    seq: int | None
    detail: str

    @property
    def warning(self) -> bool:
        return self.kind in WARNINGS
