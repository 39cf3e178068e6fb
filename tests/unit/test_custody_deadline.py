"""How long files are tried for: until their provider deletes them, and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from agentflow.core.custody import EXPIRED, FARTHEST, NOT_IN_TIME
from agentflow.core.events import Collected, Event, Succeeded, Woke
from agentflow.core.job import Attempt, Job, Phase, Status
from agentflow.core.machine import decide
from agentflow.core.policy import Policy
from agentflow.core.results import Artifact, Custody, Result
from agentflow.core.transition import RANDOM_BYTES, Disposition, Effect, Transition
from agentflow.types import JobId, Token

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
FILE = Artifact("https://acme/a.png")
MORTAL = replace(FILE, expires_at=NOW + HOUR)


def running(**policy: Any) -> Job:
    return Job(
        id=JobId("job_" + "0" * 32),
        task="acme.make",
        status=Status.RUNNING,
        created_at=NOW,
        deadline=NOW + HOUR,
        check_at=NOW,
        attempts=(Attempt(1, Token("t"), "n", "w", "x1", NOW),),
        policy=Policy(**policy),
    )


def told(job: Job, event: Event, at: datetime = NOW) -> Transition:
    return decide(job, event, at, bytes(RANDOM_BYTES))


def collecting(*files: Artifact, **policy: Any) -> Job:
    event = Succeeded(result=Result("done", artifacts=files), attempt=1)
    after = told(running(**policy), event).after
    assert after.phase is Phase.COLLECTING
    return after


def artifact(job: Job, index: int = 0) -> Artifact:
    assert job.result is not None
    return job.result.artifacts[index]


def alarms(job: Job) -> Iterator[tuple[datetime, Transition]]:
    """Every alarm of a job that nobody copies the files of, each just in time."""
    while job.wake_at is not None:
        at = job.wake_at
        transition = told(job, Woke(), at)
        yield at, transition
        job = transition.after


def test_a_file_that_expires_is_tried_until_it_does_and_no_longer() -> None:
    tries = list(alarms(collecting(MORTAL, collect_checks=2)))
    *before, (last, end) = tries
    assert len(before) > 12
    for at, transition in before:
        assert at < NOW + HOUR
        assert [ring.effect for ring in transition.rings] == [Effect.COLLECT]
        assert transition.disposition is Disposition.QUIET
    assert last == NOW + HOUR
    assert (end.after.status, end.reason) == (Status.SUCCEEDED, "artifacts_lost")
    assert artifact(end.after).status is Custody.LOST
    assert artifact(end.after).note == EXPIRED


def test_the_last_try_comes_shortly_before_the_end() -> None:
    *_, (last, _), _ = alarms(collecting(MORTAL))
    assert NOW + HOUR - last <= timedelta(minutes=1)


def test_tries_grow_apart_but_not_beyond_bounds() -> None:
    far = replace(FILE, expires_at=NOW + timedelta(hours=20))
    times = [at for at, _ in alarms(collecting(far))]
    gaps = [(b - a).total_seconds() for a, b in pairwise(times)]
    assert gaps[0] < 20
    assert max(gaps) == FARTHEST
    assert len(times) < 200


def test_a_file_of_unknown_life_is_tried_so_often() -> None:
    *_, (last, end) = alarms(collecting(FILE, collect_checks=4))
    assert len(list(alarms(collecting(FILE, collect_checks=4)))) == 4
    assert last < NOW + HOUR
    assert artifact(end.after).note == NOT_IN_TIME


def test_each_file_has_an_end_of_its_own() -> None:
    soon = replace(FILE, expires_at=NOW + timedelta(minutes=5))
    lost = [
        (at, [a.status for a in transition.after.result.artifacts])
        for at, transition in alarms(collecting(soon, MORTAL, FILE, collect_checks=3))
        if transition.disposition is Disposition.APPLIED and transition.after.result
    ]
    gone, here = Custody.LOST, Custody.PENDING
    assert [states for _, states in lost] == [
        [here, here, gone],
        [gone, here, gone],
        [gone, gone, gone],
    ]
    assert [at for at, _ in lost][1:] == [NOW + timedelta(minutes=5), NOW + HOUR]


def test_an_alarm_that_comes_late_gives_an_expired_file_one_more_try() -> None:
    job = collecting(MORTAL)
    back = NOW + 3 * HOUR
    once = told(job, Woke(), back)
    assert [ring.effect for ring in once.rings] == [Effect.COLLECT]
    assert not once.after.final
    assert once.after.wake_at is not None
    assert once.after.wake_at <= back + timedelta(minutes=1)
    assert told(once.after, Woke(), once.after.wake_at).after.final


def test_a_file_that_had_expired_when_its_success_was_heard_is_tried_once() -> None:
    job = collecting(replace(FILE, expires_at=NOW - HOUR))
    *_, (_, end) = alarms(job)
    assert len(list(alarms(job))) == 1
    assert end.after.final


def test_a_copy_that_arrives_after_the_end_counts_while_the_job_is_open() -> None:
    job = collecting(MORTAL)
    stored = replace(artifact(job), status=Custody.STORED, key="a", sha256="0" * 64, size=1)
    late = told(job, Collected(attempt=1, artifacts=[stored]), NOW + 2 * HOUR)
    assert (late.after.status, late.reason) == (Status.SUCCEEDED, "succeeded")


def test_the_policy_says_how_long_files_live_where_the_artifact_does_not() -> None:
    own = replace(FILE, expires_at=NOW + timedelta(minutes=10))
    job = collecting(FILE, own, files_live=3600)
    assert [artifact(job, i).expires_at for i in (0, 1)] == [NOW + HOUR, own.expires_at]


def test_what_is_in_custody_already_does_not_expire() -> None:
    stored = replace(FILE, status=Custody.STORED, key="a", sha256="0" * 64, size=1)
    job = collecting(stored, FILE, files_live=3600)
    assert artifact(job).expires_at is None


def test_no_file_keeps_a_job_open_for_longer_than_a_day_after_its_deadline() -> None:
    eternal = replace(FILE, expires_at=datetime(9999, 1, 1, tzinfo=UTC))
    *_, (last, end) = alarms(collecting(eternal))
    assert last == NOW + HOUR + timedelta(days=1)
    assert artifact(end.after).note == NOT_IN_TIME


def test_the_end_of_a_file_is_kept_in_utc() -> None:
    for said in ("2026-01-01T12:00:00", "2026-01-01T14:00:00+02:00"):
        given = datetime.fromisoformat(said)
        end = replace(FILE, expires_at=given).expires_at
        assert end is not None
        assert end.isoformat() == "2026-01-01T12:00:00+00:00"


def test_a_life_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="files_live"):
        Policy(files_live=0)
