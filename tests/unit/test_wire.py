"""What workers and writers say to each other, as JSON and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from agentflow.core.events import (
    Abandoned,
    Accepted,
    Envelope,
    Failed,
    Progressed,
    Source,
    Succeeded,
)
from agentflow.core.results import Artifact, ErrorInfo, Result
from agentflow.errors import ErrorKind
from agentflow.transport.conversation import Beat, Claim, Denied, Granted
from agentflow.transport.wire import dump_answer, dump_said, key_of, load_answer, load_said
from agentflow.types import JobId

JOB = JobId("job_" + "a" * 32)
THEN = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def report(event: Any) -> Envelope:
    return Envelope("out:1:nonce", Source.WORKER, THEN, JOB, event)


CLAIM = Claim(JOB, 2, "nonce", "worker_1", "fake.work", "account_1")
BEAT = Beat("worker_1", [(JOB, 1), (JobId("job_" + "b" * 32), 3)])
REPORTS = [
    report(Succeeded(Result(output={"a": [1, None]}, artifacts=[Artifact("http://x/y")]))),
    report(Failed(ErrorInfo(ErrorKind.RATE_LIMITED, "slower", retry_after=1.5), attempt=2)),
    report(Accepted(external_id="ext-1", attempt=2)),
    report(Progressed(fraction=0.25, message="a \u2028 quarter", attempt=2)),
    report(Abandoned(called=True, nonce="nonce", attempt=2)),
]


def plain(said: Any) -> Any:
    return orjson.loads(orjson.dumps(said))


@pytest.mark.parametrize("said", [CLAIM, BEAT, *REPORTS])
def test_what_is_said_arrives_as_it_was_said(said: Any) -> None:
    assert load_said(plain(dump_said(said))) == said


@pytest.mark.parametrize("said", [CLAIM, BEAT, REPORTS[3]])
def test_fields_that_a_later_version_adds_are_left_out(said: Any) -> None:
    assert load_said({**plain(dump_said(said)), "mood": "calm"}) == said


def test_fields_that_a_later_version_adds_to_events_are_left_out() -> None:
    said = plain(dump_said(REPORTS[3]))
    said["fields"]["mood"] = "calm"
    assert load_said(said) == REPORTS[3]


def nonsense() -> list[Any]:
    claim, beat, made = (plain(dump_said(x)) for x in (CLAIM, BEAT, REPORTS[3]))
    return [
        {"kind": "dance"},
        {"no": "kind"},
        {k: v for k, v in claim.items() if k != "nonce"},
        {**made, "event": "teleported"},
        {**made, "source": "rumour"},
        {**made, "at": "soon"},
        {**made, "fields": []},
        {**made, "fields": {"fraction": {}}},
        {**beat, "attempts": [[JOB]]},
        {**beat, "attempts": 7},
        [],
        None,
        7,
    ]


@pytest.mark.parametrize("said", nonsense())
def test_what_cannot_be_read_is_one_of_three_errors(said: Any) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        load_said(said)


@pytest.mark.parametrize("answer", [Granted(5.0, THEN, True), Denied("queued"), None])
def test_an_answer_arrives_as_it_was_given(answer: Any) -> None:
    assert load_answer(plain(dump_answer(answer))) == answer


def test_what_a_later_version_adds_to_a_grant_is_left_out() -> None:
    given = plain(dump_answer(Granted(5.0, THEN, True)))
    given["granted"].append("calm")
    assert load_answer({**given, "mood": "calm"}) == Granted(5.0, THEN, True)


def test_the_same_thing_said_again_has_the_same_key_and_another_has_not() -> None:
    again = load_said(plain(dump_said(CLAIM)))
    assert isinstance(again, Claim)
    others = [Claim(JOB, 2, "other", "worker_1", "fake.work"), REPORTS[0]]
    keys = [key_of(each) for each in (CLAIM, again, *others)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
