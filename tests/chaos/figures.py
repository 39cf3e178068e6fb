"""What each kind of fault did to those who use it, read from the database after the storm."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median

from support.crash.books import Books, Row

from chaos.faults import Struck

JUST_AFTER = 2.0
"""Seconds after the end of a fault in which jobs are still counted as submitted under it."""

LEASE = 15.0
DEAF = 7.0


@dataclass
class Figure:
    """Seconds: how long it lasted, until the first success after it, and from the submit to the
    end of each job that was submitted under it."""

    times: int = 0
    lasted: list[float] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)


def figures(books: Books, struck: Sequence[Struck]) -> dict[str, Figure]:
    """By kind of fault."""
    done = [job for job in books.jobs if job["status"] == "succeeded"]
    ends = sorted(job["finished_at"].timestamp() for job in done)
    made = sorted((job["created_at"].timestamp(), _age(job)) for job in done)
    found: defaultdict[str, Figure] = defaultdict(Figure)
    for fault in struck:
        figure = found[fault.kind]
        figure.times += 1
        figure.lasted.append(fault.healed - fault.began)
        first = bisect_left(ends, fault.healed)
        if first < len(ends):
            figure.recovery.append(ends[first] - fault.healed)
        low = bisect_left(made, (fault.began, 0.0))
        high = bisect_left(made, (fault.healed + JUST_AFTER, 0.0))
        figure.ages += [age for _, age in made[low:high]]
    return dict(found)


def _age(job: Row) -> float:
    lived: timedelta = job["finished_at"] - job["created_at"]
    return lived.total_seconds()


def table(found: dict[str, Figure]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| fault | times | lasted (s) | first success after (s) | submit to end (s) |"
    yield "|---|---|---|---|---|"
    for kind, figure in sorted(found.items()):
        lasted, recovery, ages = map(_spread, (figure.lasted, figure.recovery, figure.ages))
        yield f"| {kind} | {figure.times} | {lasted} | {recovery} | {ages} |"


def _spread(values: Sequence[float]) -> str:
    """Median and most."""
    return f"{median(values):.1f}, {max(values):.1f}" if values else "-"


def slowest(books: Books, most: int = 5) -> list[Row]:
    done = (job for job in books.jobs if job["status"] == "succeeded")
    return sorted(done, key=_age, reverse=True)[:most]


def declared_dead(
    books: Books, struck: Sequence[Struck]
) -> Iterator[tuple[Row, str, list[Struck]]]:
    """Entries by which an attempt's worker was given up, its name, and the faults that had struck
    it, or its way to the writers, within the lease before."""
    workers = {(a["job_id"], a["number"]): a["worker"] for a in books.attempts}
    for entry in books.history:
        if entry["reason"] != "lease_lost" or entry["disposition"] != "applied":
            continue
        worker = workers[entry["job_id"], _attempt(books, entry)] or ""
        name = worker.removeprefix("worker_").partition(".")[0]
        at: datetime = entry["decided_at"]
        since = at.timestamp() - LEASE - DEAF
        near = [f for f in struck if f.began < at.timestamp() and (f.healed or 1e12) > since]
        yield entry, name, [f for f in near if f.target in (name, "redis")]


def _attempt(books: Books, entry: Row) -> int:
    """The attempt in charge when the entry was written."""
    started = [
        e["fields"]["attempt"]
        for e in books.entries[entry["job_id"]]
        if e["event"] == "started" and e["disposition"] == "applied" and e["seq"] < entry["seq"]
    ]
    return int(started[-1])
