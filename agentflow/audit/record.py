"""All the rows of one job, held against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from agentflow.audit.booked import booked_findings
from agentflow.audit.finding import Finding, Kind
from agentflow.audit.standing import standing_findings
from agentflow.audit.told import Told
from agentflow.audit.written import written_findings
from agentflow.store.rows import Row, attempt_from, job_from, loads


@dataclass(frozen=True, slots=True)
class Record:
    """`history` is in the order of `seq`, `attempts` in that of `number`."""

    job: Row
    attempts: Sequence[Row]
    history: Sequence[Row]
    tags: Sequence[Row]
    usage: Sequence[Row] = ()

    @property
    def id(self) -> str:
        id: str = self.job["id"]
        return id


@dataclass(frozen=True, slots=True)
class Checked:
    findings: list[Finding]
    decided_again: int
    """Entries the machine was asked about once more; those of other versions are not."""


def check(record: Record, now: datetime) -> Checked:
    """Whatever the rows hold, nothing is raised."""
    told = Told(record.id, now)
    findings = [*_counted(record), *_tenants(record), *told.findings(record.history)]
    for look in (_written(record, told), _standing(record, now), _tags(record)):
        try:
            findings += look
        except Exception as error:  # a stranger wrote this row: it may hold anything
            said = f"the job cannot be read: {error!r}"[:300]
            findings.append(Finding(Kind.UNREADABLE, record.id, None, said))
            break
    return Checked(findings, told.replay.decided_again)


def _counted(record: Record) -> Iterator[Finding]:
    version, count = record.job["version"], len(record.history)
    if not count:
        said = "a job is stored together with its first entry"
        yield Finding(Kind.NO_HISTORY, record.id, None, said)
    elif version != count:
        said = f"version {version}, but {count} entries"
        yield Finding(Kind.VERSION, record.id, None, said)


def _tenants(record: Record) -> Iterator[Finding]:
    tenant = record.job["tenant"]
    for name, rows in (
        ("an attempt", record.attempts),
        ("an entry", record.history),
        ("a tag", record.tags),
    ):
        if any(row["tenant"] != tenant for row in rows):
            said = f"the job is of {tenant!r}, {name} of it is not"
            yield Finding(Kind.TENANT, record.id, None, said)


def _written(record: Record, told: Told) -> Iterator[Finding]:
    if told.whole:
        yield from written_findings(record.job, record.attempts, told.replay)


def _standing(record: Record, now: datetime) -> Iterator[Finding]:
    job = job_from(record.job, [attempt_from(row) for row in record.attempts])
    yield from standing_findings(record.job, job, now)
    yield from booked_findings(job, record.usage)


def _tags(record: Record) -> Iterator[Finding]:
    kept, listed = set(loads(record.job["tags"])), [row["tag"] for row in record.tags]
    if kept != set(listed) or len(kept) != len(listed):
        said = f"{sorted(kept)} on the job, {sorted(listed)} to search by"
        yield Finding(Kind.TAGS, record.id, None, said)
