"""Whatever the order and number, the facts of one outcome end the same, and history tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.core.events import (
    EVENTS,
    Abandoned,
    Accepted,
    Canceled,
    CancelRequested,
    Changed,
    Collected,
    Event,
    Failed,
    Progressed,
    Started,
    Submitted,
    Succeeded,
    Woke,
    dump_event,
    load_event,
    name_of,
)
from agentflow.core.job import (
    FINAL,
    TIMERS,
    Attempt,
    Ending,
    Job,
    Phase,
    Status,
    fold,
    patch_between,
)
from agentflow.core.machine import decide
from agentflow.core.policy import Abilities, Policy
from agentflow.core.results import Artifact, Cost, Custody, ErrorInfo, Result, artifact_id
from agentflow.core.transition import RANDOM_BYTES, Disposition, Effect, Transition
from agentflow.errors import ErrorKind, InvalidInput, OutcomeUnknown, RateLimited
from agentflow.testing.explorer.rules import faults
from agentflow.types import JobId, Token

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ID = JobId("job_" + "0" * 32)
MOST = b"\xff" * RANDOM_BYTES
GRANTED = Attempt(1, Token("t1"), nonce="n1", worker="w1", started_at=NOW)
SECOND = Attempt(2, Token("t2"), nonce="n2", worker="w1", started_at=NOW)

abilities = st.builds(
    Abilities, webhooks=st.booleans(), fetch=st.booleans(), find=st.booleans(), cancel=st.booleans()
)


def job(**changes: Any) -> Job:
    given: dict[str, Any] = {
        "id": ID,
        "task": "acme.make",
        "status": Status.RUNNING,
        "created_at": NOW,
        "deadline": NOW + timedelta(hours=1),
        "check_at": NOW + timedelta(seconds=15),
        "attempts": (GRANTED,),
        "policy": Policy(backoff=10.0),
    }
    return Job(**given | changes)


# One provider outcome

STARTS = [
    job(),
    job(phase=Phase.PROVIDER),
    job(status=Status.WAITING, phase=Phase.UNKNOWN),
    job(status=Status.WAITING, phase=Phase.PROVIDER),
    job(
        status=Status.WAITING,
        phase=Phase.PROVIDER,
        attempts=(replace(GRANTED, external_id="x1"),),
    ),
    job(
        status=Status.QUEUED,
        attempts=(Attempt(1, Token("t1")),),
        policy=Policy(repeatable=True, backoff=10.0),
    ),
]
ENDS: list[Event] = [
    Succeeded(result=Result("done"), attempt=1, external_id="x1"),
    Succeeded(result=Result(artifacts=[Artifact("https://a/b")]), attempt=1, external_id="x1"),
    Failed(InvalidInput(), attempt=1, external_id="x1"),
    Failed(RateLimited(), attempt=1, external_id="x1"),
    Canceled(attempt=1, external_id="x1"),
]
BEFORE: list[Event] = [
    Accepted("x1", attempt=1),
    Progressed(0.2, attempt=1, external_id="x1"),
    Progressed(0.7, "nearly", attempt=1, external_id="x1"),
    Changed(attempt=1, external_id="x1"),
    Changed(attempt=1),
]
EARLY: Event = Woke()
ONE_ID = st.sampled_from([None, "x1"])


def heard(start: Job, events: list[Event]) -> Job:
    """All of it within a second, so that no alarm is due."""
    for n, event in enumerate(events):
        start = decide(start, event, NOW + timedelta(seconds=n / len(events)), MOST).after
    return start


def outcome(job: Job) -> object:
    ids = [a.external_id for a in job.attempts]
    return job.status, job.phase, job.result, job.error and job.error.kind, job.attempt, ids


@given(st.sampled_from(STARTS), abilities, st.sampled_from(ENDS), st.data())
@settings(deadline=None, max_examples=500)
def test_the_facts_of_one_outcome_end_the_same_in_any_order_and_number(
    start: Job, able: Abilities, end: Event, data: st.DataObject
) -> None:
    start = replace(start, abilities=able)
    any_of = st.lists(st.sampled_from([*BEFORE, EARLY, end]), max_size=12)
    events = data.draw(st.builds(lambda a, b: [*a, end, *b], any_of, any_of))
    assert outcome(heard(start, events)) == outcome(heard(start, [BEFORE[0], end]))


@given(
    abilities,
    st.lists(st.sampled_from([ENDS[0], ENDS[2], ENDS[4]]), min_size=1),
    st.lists(st.sampled_from([*BEFORE, EARLY])),
)
@settings(deadline=None)
def test_between_contradictory_ends_the_first_wins(
    able: Abilities, ends: list[Event], more: list[Event]
) -> None:
    start = job(abilities=able)
    ended = heard(start, [ends[0]])
    assert ended.final
    assert heard(start, [*ends, *more, *ends]) == ended


@given(abilities, st.data())
@settings(deadline=None)
def test_files_end_the_same_in_any_order_and_number(able: Abilities, data: st.DataObject) -> None:
    files = [Artifact(f"https://a/{i}") for i in range(3)]
    start = heard(job(abilities=able), [Succeeded(result=Result(artifacts=files), attempt=1)])
    news = [
        Collected(attempt=1, artifacts=[replace(f, id=artifact_id(ID, i), status=custody)])
        for i, (f, custody) in enumerate(
            zip(files, [Custody.STORED, Custody.LOST, Custody.STORED], strict=True)
        )
    ]
    order = data.draw(st.permutations(news))
    more = data.draw(st.lists(st.sampled_from([*news, *BEFORE, *ENDS, EARLY])))
    ended = heard(start, [*order, *more])
    assert ended.status is Status.SUCCEEDED
    assert replace(ended, finished_at=None) == replace(heard(start, news), finished_at=None)


@given(
    st.sampled_from(STARTS),
    st.lists(st.builds(Progressed, st.floats(0, 1), attempt=st.just(1), external_id=ONE_ID)),
)
@settings(deadline=None)
def test_progress_is_the_most_that_was_heard(start: Job, news: list[Progressed]) -> None:
    reached = heard(start, list(news)).progress
    most = max((n.fraction for n in news if n.fraction is not None), default=None)
    assert (reached and reached.fraction) == most


@given(
    st.permutations(
        [
            Succeeded(result=Result("late"), attempt=1, external_id="x1"),
            Accepted("x2", attempt=2),
            Progressed(0.5, attempt=2, external_id="x2"),
            Changed(attempt=2, external_id="x2"),
        ]
    )
)
@settings(deadline=None)
def test_a_late_success_wins_and_the_newer_attempt_is_canceled(events: list[Event]) -> None:
    able = Abilities(webhooks=True, fetch=True, cancel=True)
    at, rung = job(attempt=2, attempts=(GRANTED, SECOND), abilities=able), set()
    for event in events:
        transition = decide(at, event, NOW, MOST)
        at = transition.after
        rung |= {(ring.effect, ring.attempt) for ring in transition.rings}
    assert (at.status, at.attempt, at.result) == (Status.SUCCEEDED, 1, Result("late"))
    assert {(Effect.STOP, 2), (Effect.CANCEL, 2)} <= rung
    assert (Effect.CANCEL, 1) not in rung


# Arbitrary events

texts = st.text(max_size=8)  # NUL and the like, but no lone surrogates
maybe_texts = st.none() | texts
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
artifacts = st.lists(
    st.builds(
        Artifact,
        url=maybe_texts,
        name=maybe_texts,
        id=st.sampled_from([None, artifact_id(ID, 0), artifact_id(ID, 1)]) | texts,
        status=st.sampled_from(Custody),
        size=st.none() | st.integers(0, 2**63),
        note=maybe_texts,
    ),
    max_size=2,
)
results = st.builds(
    Result,
    output=json_values,
    text=maybe_texts,
    artifacts=artifacts,
    usage=st.dictionaries(texts, numbers, max_size=2),
    cost=st.none() | st.builds(Cost, amount=texts, currency=texts, source=texts),
)
errors = st.builds(
    ErrorInfo,
    kind=st.sampled_from(ErrorKind),
    message=texts,
    retryable=st.booleans(),
    retry_after=st.none() | numbers,
    detail=st.dictionaries(texts, json_values, max_size=2),
)
attempts = st.integers(1, 3) | st.integers(-1, 9)
ids = st.sampled_from([None, "x1", "x2"]) | texts


def events_about(of: st.SearchStrategy[int]) -> st.SearchStrategy[Event]:
    about: dict[str, Any] = {"attempt": of, "external_id": ids}
    return st.one_of(
        st.builds(Submitted, attempt=of),
        st.builds(Started, nonce=st.sampled_from(["n1", "n2"]) | texts, worker=texts, attempt=of),
        st.builds(Accepted, ids.map(str), poll_after=st.none() | numbers, attempt=of),
        st.builds(Progressed, fraction=st.none() | numbers, message=maybe_texts, **about),
        st.builds(Changed, **about),
        st.builds(Succeeded, result=results, **about),
        st.builds(Failed, errors, **about),
        st.builds(Canceled, **about),
        st.builds(Collected, artifacts=artifacts, attempt=of),
        st.builds(Abandoned, called=st.booleans(), attempt=of),
        st.builds(CancelRequested, attempt=of),
        st.builds(Woke, attempt=of),
    )


events = events_about(attempts)


@given(events)
@settings(deadline=None, max_examples=300)
def test_an_event_survives_its_text(event: Event) -> None:
    text = dump_event(event)
    name = name_of(event)
    for form in (text, text.encode(), orjson.loads(text)):
        assert load_event(name, form) == event


@given(st.sampled_from(sorted(EVENTS)), json_values | st.dictionaries(texts, json_values))
@settings(deadline=None)
def test_what_no_event_looks_like_is_a_value_error(name: str, said: object) -> None:
    try:
        event = load_event(name, orjson.dumps(said))
    except ValueError:
        return
    assert name_of(event) == name


# History


@dataclass
class Entry:
    before: Job
    event: Event
    now: datetime
    random: bytes
    transition: Transition


policies = st.builds(
    Policy,
    repeatable=st.booleans(),
    on_unknown=st.sampled_from(["fail", "retry", "ask"]),
    retry_on=st.frozensets(st.sampled_from(ErrorKind), max_size=2),
    unknown_checks=st.integers(0, 2),
    cancel_checks=st.integers(0, 2),
    collect_checks=st.integers(0, 2),
    backoff=st.sampled_from([0.0, 1.0]),
)
FILES = [Artifact("https://a/0"), Artifact("https://a/1")]
NAMED = [replace(f, id=artifact_id(ID, i)) for i, f in enumerate(FILES)]
ANYWHERE: list[dict[str, Any]] = [
    {"status": Status.SCHEDULED, "attempts": (Attempt(1, Token("t1")),)},
    {"status": Status.QUEUED, "attempts": (Attempt(1, Token("t1")),)},
    {"status": Status.RUNNING},
    {"status": Status.RUNNING, "phase": Phase.PROVIDER},
    {"status": Status.WAITING, "phase": Phase.PROVIDER},
    {"status": Status.WAITING, "phase": Phase.UNKNOWN},
    {
        "status": Status.WAITING,
        "phase": Phase.COLLECTING,
        "result": Result(
            artifacts=[replace(f, id=artifact_id(ID, i)) for i, f in enumerate(FILES)]
        ),
    },
    {"status": Status.CANCELING, "ending": Ending.CANCEL},
    {"status": Status.RUNNING, "attempt": 2, "attempts": (GRANTED, SECOND)},
]
starts = st.builds(
    lambda where, policy, able, more: job(
        **where, policy=policy, abilities=able, max_attempts=where.get("attempt", 1) + more
    ),
    st.sampled_from(ANYWHERE),
    policies,
    abilities,
    st.integers(0, 2),
)
LIKELY: dict[str, Callable[[int], Event]] = {
    "woke": lambda _: Woke(),
    "started": lambda n: Started(f"n{n}", "w", attempt=n),
    "accepted": lambda n: Accepted(f"x{n}", attempt=n),
    "a little": lambda n: Progressed(0.2, attempt=n),
    "nearly": lambda n: Progressed(0.7, attempt=n, external_id=f"x{n}"),
    "changed": lambda n: Changed(attempt=n, external_id=f"x{n}"),
    "told of": lambda n: Changed(attempt=n),
    "refused": lambda n: Failed(RateLimited(), attempt=n),
    "failed": lambda n: Failed(InvalidInput(), attempt=n, external_id=f"x{n}"),
    "unknown": lambda n: Failed(OutcomeUnknown(), attempt=n),
    "succeeded": lambda n: Succeeded(result=Result(n), attempt=n, external_id=f"x{n}"),
    "with files": lambda n: Succeeded(result=Result(n, artifacts=FILES), attempt=n),
    "stored": lambda n: Collected(attempt=n, artifacts=[copied(0, Custody.STORED)]),
    "lost": lambda n: Collected(attempt=n, artifacts=[copied(0, Custody.LOST)]),
    "other lost": lambda n: Collected(attempt=n, artifacts=[copied(1, Custody.LOST)]),
    "canceled": lambda n: Canceled(attempt=n),
    "handed back": lambda n: Abandoned(called=False, attempt=n),
    "given up": lambda n: Abandoned(called=True, attempt=n),
    "cancel": lambda _: CancelRequested(),
}
OFTEN = ["woke", "woke", "woke", "started", "started", "refused"]

Said: TypeAlias = tuple[str, int] | Event
"""A likely event, about the attempt in charge or one before it, or any event at all."""

Moment: TypeAlias = tuple[Said, Any, bytes]

likely = st.tuples(st.sampled_from([*OFTEN, *LIKELY]), st.sampled_from([0, 0, 0, 1]))
passing = st.sampled_from([0, 0, 0, 0, 1, 15, "due", "due", "due", 3600])
randoms = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)
said = st.sampled_from([likely, likely, likely, events]).flatmap(lambda strategy: strategy)
lives = st.lists(st.tuples(said, passing, randoms), min_size=8, max_size=30)


def copied(index: int, custody: Custody) -> Artifact:
    return replace(NAMED[index], status=custody)


def lived(start: Job, life: list[Moment]) -> list[Entry]:
    """What happens to a job in the course of time; `due` waits for its alarm."""
    now, at, entries = NOW, start, []
    for said, passes, random in life:
        event = said
        if isinstance(said, tuple):
            event = LIKELY[said[0]](max(1, at.attempt - said[1]))
        if passes != "due":
            now += timedelta(seconds=passes)
        elif at.wake_at is not None:
            now = max(now, at.wake_at)
        entries.append(Entry(at, event, now, random, decide(at, event, now, random)))
        at = entries[-1].transition.after
    return entries


@given(starts, lives)
@settings(deadline=None, max_examples=500)
def test_no_decision_breaks_a_rule(start: Job, life: list[Moment]) -> None:
    for entry in lived(start, life):
        before, event = entry.before, entry.event
        if isinstance(event, Woke) and before.wake_at and entry.now < before.wake_at:
            assert entry.transition.after == before
        else:
            assert list(faults(before, event, entry.transition)) == []
        if before.status in FINAL:
            assert entry.transition.after is before


@given(starts, lives, randoms)
@settings(deadline=None)
def test_after_any_life_alarms_alone_end_the_job(
    start: Job, life: list[Moment], random: bytes
) -> None:
    at, alarms = start, 0
    for entry in lived(start, life):
        at = entry.transition.after
    while at.wake_at is not None:
        at, alarms = decide(at, Woke(), at.wake_at, random).after, alarms + 1
        assert alarms < 300


@given(starts, lives)
@settings(deadline=None)
def test_what_was_decided_is_decided_the_same_again(start: Job, life: list[Moment]) -> None:
    for entry in lived(start, life):
        event = load_event(name_of(entry.event), dump_event(entry.event))
        assert decide(entry.before, event, entry.now, entry.random) == entry.transition


@given(starts, lives)
@settings(deadline=None, max_examples=300)
def test_the_history_folds_to_the_row(start: Job, life: list[Moment]) -> None:
    entries = lived(start, life)
    patches = [patch_between(None, start)]
    for entry in entries:
        if entry.transition.disposition is Disposition.APPLIED:
            patches.append(patch_between(entry.before, entry.transition.after))
    end = entries[-1].transition.after if entries else start
    assert fold([as_json(patch) for patch in patches]) == as_json(row_of(end))


def row_of(job: Job) -> dict[str, Any]:
    row = {f.name: getattr(job, f.name) for f in fields(Job) if f.name not in TIMERS | {"version"}}
    return row | {"attempts": {str(a.number): a for a in job.attempts}}


def as_json(value: object) -> Any:
    return orjson.loads(orjson.dumps(value, default=sorted))
