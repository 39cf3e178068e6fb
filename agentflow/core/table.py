"""What every event does in every status, found by asking the machine.

`python -m agentflow.core.table` prints `docs/lifecycle.md`; a test compares the two.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import product
from typing import Any, TypeAlias

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
    OverBudget,
    Progressed,
    Started,
    Submitted,
    Succeeded,
    Woke,
    name_of,
)
from agentflow.core.job import FINAL, Attempt, Ending, Job, Phase, Status
from agentflow.core.machine import decide
from agentflow.core.policy import Abilities, Policy
from agentflow.core.results import Artifact, Custody, ErrorInfo, Progress, Result
from agentflow.core.transition import RANDOM_BYTES, Disposition
from agentflow.errors import ErrorKind, InvalidInput, OutcomeUnknown, RateLimited
from agentflow.types import JobId, Token

Situation: TypeAlias = tuple[Status, Phase | None]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE = NOW + timedelta(hours=1)

SITUATIONS: tuple[Situation, ...] = (
    (Status.SCHEDULED, None),
    (Status.QUEUED, None),
    (Status.QUEUED, Phase.PROVIDER),
    (Status.RUNNING, None),
    (Status.RUNNING, Phase.PROVIDER),
    (Status.WAITING, Phase.PROVIDER),
    (Status.WAITING, Phase.UNKNOWN),
    (Status.WAITING, Phase.COLLECTING),
    (Status.CANCELING, None),
    (Status.CANCELING, Phase.PROVIDER),
    (Status.CANCELING, Phase.UNKNOWN),
    *((status, None) for status in Status if status in FINAL),
)


@dataclass(frozen=True, slots=True, order=True)
class Outcome:
    """What may become of a job: `becomes` is a situation in words, `stays`, `quiet`, `ignored`."""

    becomes: str
    reason: str


Table: TypeAlias = dict[Situation, dict[str, set[Outcome]]]


def outcomes() -> Table:
    """For every situation and every event, by name, all that the machine may decide."""
    table: Table = {}
    for situation in SITUATIONS:
        by_event: dict[str, set[Outcome]] = {name: set() for name in EVENTS}
        for job in _jobs(*situation):
            for event, now in _events(job):
                by_event[name_of(event)].add(_outcome(job, event, now))
        table[situation] = by_event
    return table


def _outcome(job: Job, event: Event, now: datetime) -> Outcome:
    transition = decide(job, event, now, bytes(RANDOM_BYTES))
    after = transition.after
    reason = re.sub(r"^(retry|failed):.*", r"\1:KIND", transition.reason)
    if transition.disposition is not Disposition.APPLIED:
        return Outcome(transition.disposition.value, reason)
    stays = (after.status, after.phase) == (job.status, job.phase)
    return Outcome("stays" if stays else words((after.status, after.phase)), reason)


def words(situation: Situation) -> str:
    status, phase = situation
    return f"{status.value} ({phase.value})" if phase else status.value


# Representative jobs and events: each differs from another in something decisions depend on.

_FRESH = Attempt(1, Token("t1"))
_GRANTED = replace(_FRESH, nonce="n1", worker="w1", started_at=NOW)
_KNOWN = replace(_GRANTED, external_id="x1")
_FILES = [Artifact("https://acme/0", id="f0"), Artifact("https://acme/1", id="f1")]
_POLICIES = (
    *(Policy(on_unknown=unknown) for unknown in ("fail", "retry", "ask")),
    Policy(repeatable=True),
)
_ABILITIES = (
    Abilities(webhooks=True, fetch=True, find=True, cancel=True),
    Abilities(webhooks=True),
    Abilities(),
)


def _jobs(status: Status, phase: Phase | None) -> Iterator[Job]:
    endings = list(Ending) if status is Status.CANCELING else [None]
    counts = ((0, 2), (99, 2), (99, 0))
    for attempts, policy, abilities, ending, (checks, more), beside in product(
        _attempts(status, phase), _POLICIES, _ABILITIES, endings, counts, _beside(status, phase)
    ):
        if policy.repeatable and phase is Phase.UNKNOWN:
            continue  # a repeatable call is repeated rather than looked for
        if not policy.repeatable and (status, phase) == (Status.QUEUED, Phase.PROVIDER):
            continue  # no other is made before the grant
        yield Job(
            id=JobId("job"),
            task="acme.make",
            status=status,
            phase=phase,
            reason="as before",
            ending=ending,
            created_at=NOW,
            deadline=DEADLINE,
            check_at=None if status in FINAL else NOW + timedelta(seconds=1),
            attempt=len(attempts),
            attempts=attempts,
            max_attempts=len(attempts) + more,
            policy=policy,
            abilities=abilities,
            checks=checks,
            **beside,
        )


def _attempts(status: Status, phase: Phase | None) -> list[tuple[Attempt, ...]]:
    match status:
        case Status.SCHEDULED | Status.QUEUED:
            present = [_FRESH]
        case Status.WAITING | Status.CANCELING if phase is Phase.UNKNOWN:
            present = [_GRANTED]
        case _:
            present = [_GRANTED, _KNOWN]
    second = [(_GRANTED, replace(p, number=2, token=Token("t2"))) for p in present]
    return [*((p,) for p in present), *second]


def _beside(status: Status, phase: Phase | None) -> list[dict[str, Any]]:
    if phase is Phase.COLLECTING:
        expiring = [replace(f, expires_at=NOW + timedelta(seconds=1)) for f in _FILES]
        mixed = [_FILES[0], expiring[1]]
        return [{"result": Result(artifacts=files)} for files in (_FILES, expiring, mixed)]
    if status is Status.SUCCEEDED:
        return [{"result": Result()}]
    if status in FINAL:
        return [{"error": ErrorInfo(ErrorKind.TIMEOUT, "")}]
    return [{"progress": Progress(0.5)}]


def _events(job: Job) -> Iterator[tuple[Event, datetime]]:
    for at in (NOW, NOW + timedelta(seconds=1), DEADLINE):
        yield Woke(), at
    for event in _said(job):
        yield event, NOW
    yield Started("n9", "w9", attempt=job.attempt), DEADLINE
    yield Failed(RateLimited(retry_after=9999), attempt=job.attempt), NOW


def _said(job: Job) -> Iterator[Event]:
    stored = [replace(f, status=Custody.STORED) for f in _FILES]
    lost = [stored[0], replace(_FILES[1], status=Custody.LOST)]
    yield Submitted()
    yield CancelRequested()
    for files in ([], stored[:1], stored, lost):
        yield Collected(artifacts=files, attempt=job.attempt)
    for attempt in {1, job.attempt, 9}:
        yield Started("n9", "w9", attempt=attempt)
        yield from (Abandoned(called=called, attempt=attempt) for called in (True, False))
        yield Abandoned(called=True, nonce="n9", attempt=attempt)
        yield OverBudget("none is left", attempt=attempt)
        yield from (Accepted(f"x{n}", attempt=attempt) for n in (1, 9))
        for external_id in (None, "x1", "x9"):
            about: dict[str, Any] = {"attempt": attempt, "external_id": external_id}
            yield from (Progressed(fraction, **about) for fraction in (0.1, 0.5, 0.9))
            yield Changed(**about)
            yield from (Succeeded(result=Result(artifacts=f), **about) for f in ([], _FILES))
            for error in (RateLimited(), InvalidInput(), OutcomeUnknown()):
                yield Failed(error, **about)
            yield Canceled(**about)


# The page


def sentences(of: type[Enum]) -> dict[str, str]:
    """The string below each member of an enum, by the member's value."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for name, said in zip(tree.body, tree.body[1:], strict=False):
        match name, said:
            case (
                ast.Assign(targets=[ast.Name(id=member)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[of[member].value] = " ".join(text.split())
    return found


def diagram(table: Table) -> str:
    """Mermaid: every change of status, with the events that may cause it."""
    arrows: dict[tuple[str, str], set[str]] = {}
    for (status, _), by_event in table.items():
        for event, found in by_event.items():
            for becomes in (o.becomes.split(" ")[0] for o in found):
                if becomes in list(Status) and becomes != status:
                    arrows.setdefault((status.value, becomes), set()).add(event)
    starts = ("scheduled: submitted", "queued: submitted", "waiting: submitted (adopted)")
    lines = ["stateDiagram-v2", *(f"[*] --> {start}" for start in starts)]
    order = [status.value for status in Status]
    for before, after in sorted(arrows, key=lambda a: (order.index(a[0]), order.index(a[1]))):
        causes = [name for name in EVENTS if name in arrows[before, after]]
        lines.append(f"{before} --> {after}: {', '.join(causes)}")
    lines += [f"{status} --> [*]" for status in order if status in FINAL]
    return "```mermaid\n" + "\n    ".join(lines) + "\n```"


def page(table: Table) -> str:
    """`docs/lifecycle.md`."""
    about = sentences(Status)
    blocks = [INTRODUCTION, diagram(table), "## Statuses"]
    blocks.append(_rows("status", about))
    blocks.append(PHASES)
    blocks.append(_rows("phase", sentences(Phase)))
    blocks.append("## Events")
    blocks.append(
        _rows("event", {n: " ".join((cls.__doc__ or "").split()) for n, cls in EVENTS.items()})
    )
    blocks.append(RULES)
    for situations, by_event in _alike(table):
        blocks.append("### " + ", ".join(words(situation) for situation in situations))
        blocks.append(_outcome_rows(by_event))
    return "\n\n".join(blocks) + "\n"


def _rows(kind: str, said: dict[str, str]) -> str:
    rows = [
        f"| {kind} | |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in said.items()),
    ]
    return "\n".join(rows)


def _alike(table: Table) -> Iterator[tuple[list[Situation], dict[str, set[Outcome]]]]:
    """The situations, those with the same outcomes together."""
    together: list[tuple[list[Situation], dict[str, set[Outcome]]]] = []
    for situation, by_event in table.items():
        for situations, known in together:
            if known == by_event:
                situations.append(situation)
                break
        else:
            together.append(([situation], by_event))
    return iter(together)


def _outcome_rows(by_event: dict[str, set[Outcome]]) -> str:
    rows = ["| event | becomes | reason |", "|---|---|---|"]
    for event, found in by_event.items():
        for becomes in sorted({o.becomes for o in found}, key=_weight):
            reasons = sorted(f"`{o.reason}`" for o in found if o.becomes == becomes)
            shown = f"*{becomes}*" if becomes in _UNMOVED else becomes
            rows.append(f"| `{event}` | {shown} | {', '.join(reasons)} |")
    return "\n".join(rows)


_UNMOVED = ("stays", "quiet", "ignored")


def _weight(becomes: str) -> tuple[int, str]:
    return (_UNMOVED.index(becomes) + 1 if becomes in _UNMOVED else 0), becomes


PHASES = """\
While `waiting` or `canceling`, a phase says what for. A `queued` or `running` job has the first of
them once its provider has told of work whose id is not known yet:"""

INTRODUCTION = """\
# The life of a job

This page is printed by the code (`python -m agentflow.core.table`): for each status and each event
the machine was asked what it decides, for jobs of every kind. A test keeps it true."""

RULES = """\
## What each event does

*stays* changes the job but not its status, *quiet* moves at most its timers and writes no history,
*ignored* is recorded with its reason and changes nothing. `KIND` is the kind of an error. Which of
several outcomes it is depends on the attempt and the external id the event names, on the task's
policy, on what its plugin can do, and on the time."""


if __name__ == "__main__":
    sys.stdout.write(page(outcomes()))
