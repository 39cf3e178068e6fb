"""From a request to a job: what is refused, and when the job starts and ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from agentflow.core.job import Job, Status
from agentflow.core.providers import Provider
from agentflow.core.submission import JobSpec, prepare, request_hash
from agentflow.errors import InvalidInput

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
EAST = timezone(timedelta(hours=9))
TASK = Provider("acme").task("any")(lambda call, input: input)


def made(input: Any = None, **options: Any) -> Job:
    return prepare(JobSpec("acme.any", input, **options), TASK, now=NOW).job


def faults(input: Any = None, **options: Any) -> set[str]:
    with pytest.raises(InvalidInput) as refused:
        made(input, **options)
    return {fault["loc"] for fault in refused.value.detail["errors"]}


@pytest.mark.parametrize("zone", [UTC, EAST, timezone(-HOUR)])
def test_instants_are_kept_in_utc(zone: timezone) -> None:
    at = NOW + HOUR
    job = made(run_at=at.astimezone(zone), deadline=(at + HOUR).astimezone(zone))
    for kept, meant in ((job.check_at, at), (job.deadline, at + HOUR)):
        assert kept == meant
        assert kept.utcoffset() == timedelta(), "SQLite compares them as text"


@pytest.mark.parametrize("past", [NOW - HOUR, datetime(1970, 1, 1, tzinfo=UTC)])
def test_a_start_in_the_past_is_now(past: datetime) -> None:
    job = made(run_at=past)
    assert (job.status, job.check_at) == (Status.QUEUED, NOW)
    assert job.deadline == NOW + timedelta(seconds=job.policy.deadline)


def test_a_deadline_counts_from_the_start() -> None:
    assert made(delay=60, deadline=30).deadline == NOW + timedelta(seconds=90)
    assert made(run_at=NOW + HOUR, deadline=30).deadline == NOW + HOUR + timedelta(seconds=30)


@pytest.mark.parametrize(
    "options",
    [
        {"deadline": NOW},
        {"deadline": NOW - HOUR},
        {"deadline": NOW + HOUR, "delay": 3600},
        {"deadline": NOW + HOUR, "run_at": (NOW + HOUR).astimezone(EAST)},
        {"deadline": NOW + timedelta(days=400)},
        {"deadline": datetime.max.replace(tzinfo=timezone(-HOUR))},
        {"deadline": (NOW + HOUR).replace(tzinfo=None)},
        {"deadline": 0},
        {"deadline": float("nan")},
        {"deadline": 1e12},
    ],
)
def test_a_deadline_lies_after_the_start_and_within_a_year(options: Any) -> None:
    assert faults(**options) == {"deadline"}


@pytest.mark.parametrize(
    "input",
    ["\0", {"a\0": 1}, ["\\\0"], "\ud800", float("nan"), [float("inf")], 2**64, -(2**63) - 1,
     NOW, b"x", {1: 2}, {"a": object()}],
)  # fmt: skip
def test_an_input_that_cannot_be_stored_as_it_is_is_refused(input: Any) -> None:
    assert faults(input) == {"input"}


@pytest.mark.parametrize("input", ["\\u0000", "\\\\u0000", {"\\u0000": "\\ud800"}, 2**63, "\x01"])
def test_what_only_looks_odd_is_kept(input: Any) -> None:
    assert made(input).status is Status.QUEUED


def test_the_same_request_has_the_same_hash_however_it_is_written() -> None:
    one = JobSpec("t", {"a": 1, "b": [2]}, run_at=NOW, deadline=NOW + HOUR, tags=["x"])
    other = JobSpec("t", {"b": [2], "a": 1}, run_at=NOW, deadline=NOW + HOUR, tags=("x",))
    assert request_hash(one) == request_hash(other)
    assert request_hash(one) != request_hash(JobSpec("t", {"a": 1, "b": [3]}, run_at=NOW))
