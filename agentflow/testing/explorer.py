"""Search every order of everything that can happen to one job, and check each step.

`explore(world)` walks breadth first through all states of a `World` and returns the counts. It
raises `Broken`, with the shortest way there, for a step that breaks a rule of the design. Time is
abstract: an alarm is due or not, the deadline has passed or not; instants of equal meaning become
one instant, so that the states are finite in number.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from agentflow.core.job import Attempt, Job, Phase, Status, patch_between
from agentflow.core.machine import decide
from agentflow.core.results import Custody, ErrorInfo
from agentflow.core.transition import RANDOM_BYTES, Disposition, Effect, Ring, Transition
from agentflow.testing.world import At, Decided, EventName, Model, Run, State, Work, World
from agentflow.types import JobId, Token

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(hours=1)
DEADLINE = NOW + timedelta(days=30)
LATE = DEADLINE + timedelta(hours=1)
RANDOM = bytes(RANDOM_BYTES)

ALARMS = 40
"""More alarms in a row than this, with nothing else heard, count as hanging for ever."""


class Broken(AssertionError):
    """A rule does not hold."""


@dataclass(frozen=True, slots=True)
class Explored:
    """What a search saw."""

    world: World
    states: int
    transitions: int
    jobs: int
    decisions: int
    finals: dict[str, int]

    def __str__(self) -> str:
        finals = ", ".join(f"{status} {n:,}" for status, n in sorted(self.finals.items()))
        return (
            f"{self.world.name}: {self.states:,} states, {self.transitions:,} transitions,"
            f" {self.jobs:,} jobs, {self.decisions:,} decisions; {finals}"
        )


def explore(world: World, *, limit: int = 5_000_000) -> Explored:
    """Every state that can be reached. Raises `Broken`; `limit` bounds the states."""
    return Explorer(world).run(limit)


class Explorer:
    def __init__(self, world: World) -> None:
        self.world = world
        self._jobs: list[Job] = []
        self._numbers: dict[str, int] = {}
        self._decisions: dict[tuple[int, EventName, At], tuple[Decided, tuple[Ring, ...]]] = {}
        self._healed: set[tuple[int, tuple[int, ...]]] = set()
        self._model = Model(world, self._decide, self._jobs.__getitem__)

    def run(self, limit: int) -> Explored:
        runs = len(self._model.runs)
        start = State(self._number(self._first()), False, 0b10, (0,) * runs, (0,) * runs)
        came: dict[State, tuple[State, str] | None] = {start: None}
        waiting = deque([start])
        transitions = 0
        finals: Counter[str] = Counter()
        state = start
        try:
            while waiting:
                state = waiting.popleft()
                job = self._jobs[state.job]
                if job.final:
                    finals[job.status] += 1
                self._check(state, job)
                for word, after in self._model.moves(state):
                    transitions += 1
                    if after not in came:
                        came[after] = (state, word)
                        waiting.append(after)
                if len(came) > limit:
                    raise Broken(f"more than {limit} states")
        except Broken as broken:
            raise Broken(f"{broken}\n{self._way(came, state)}") from None
        return Explored(
            self.world,
            len(came),
            transitions,
            len(self._jobs),
            len(self._decisions),
            dict(finals),
        )

    def _first(self) -> Job:
        return Job(
            id=JobId("job_" + "0" * 32),
            task="acme.make",
            status=Status.QUEUED,
            created_at=NOW,
            deadline=DEADLINE,
            check_at=SOON,
            attempts=(Attempt(1, Token("token1")),),
            max_attempts=self.world.max_attempts,
            policy=self.world.policy,
            abilities=self.world.abilities,
        )

    # One decision, checked when it is first made

    def _decide(self, number: int, name: EventName, at: At) -> Decided:
        return self._decided(number, name, at)[0]

    def _decided(self, number: int, name: EventName, at: At) -> tuple[Decided, tuple[Ring, ...]]:
        key = (number, name, at)
        if key not in self._decisions:
            self._decisions[key] = self._make(number, name, at)
        return self._decisions[key]

    def _make(self, number: int, name: EventName, at: At) -> tuple[Decided, tuple[Ring, ...]]:
        job = self._jobs[number]
        event = self._model.event(job, name)
        now = {"now": NOW, "late": LATE, "due": job.wake_at or NOW}[at]
        said = f"{brief(job)}\n{event} at {now}"
        try:
            transition = decide(job, event, now, RANDOM)
        except Exception as error:
            raise Broken(f"{error!r} raised by {said}") from error
        for fault in faults(job, transition):
            raise Broken(f"{fault}: {said}\n{transition.reason}: {brief(transition.after)}")
        if name[0] == "woke" and job.wake_at and transition.after == job:
            raise Broken(f"an alarm changes nothing: {said}\n{transition.reason}")
        calls, cancels = 0, []
        for ring in transition.rings:
            if ring.effect is Effect.CALL:
                calls |= 1 << ring.attempt
            elif ring.effect is Effect.CANCEL and job.abilities.cancel:
                cancels.append((ring.attempt, ring.external_id))
        after = self._number(transition.after)
        return Decided(after, calls, tuple(cancels)), transition.rings

    def _number(self, job: Job) -> int:
        """The job, with everything taken away that no decision depends on."""
        same = canonical(job)
        key = repr(same)
        if key not in self._numbers:
            self._numbers[key] = len(self._jobs)
            self._jobs.append(same)
            self._check_alarms(self._numbers[key])
        return self._numbers[key]

    # What holds in every state

    def _check(self, state: State, job: Job) -> None:
        self._check_calls(state)
        if job.final:
            self._check_strays(state, job)
        elif not state.late and (state.job, state.works) not in self._healed:
            self._healed.add((state.job, state.works))
            self._check_healing(state, job)

    def _check_calls(self, state: State) -> None:
        """A paid call is made at most once per attempt, and never blindly repeated."""
        if self.world.repeatable:
            return
        called = [a for (a, _), w in zip(self._model.runs, state.works, strict=True) if w & 1]
        if len(set(called)) < len(called):
            raise Broken("an attempt's call was made twice")
        surely = Work.REFUSED | Work.FAILED
        unsure = any(w & Work.CALLED and not w & surely for w in state.works[: self._first_runs])
        if len(called) > 1 and unsure and self.world.on_unknown != "retry":
            raise Broken("a call was repeated whose outcome nobody knew")

    @property
    def _first_runs(self) -> int:
        return self.world.askings[0]

    def _check_strays(self, state: State, job: Job) -> None:
        """Nothing that was heard of runs on for nobody."""
        if not self.world.cancel:
            return
        for work in state.works:
            if work & Work.TOLD and not work & (Work.ENDED | Work.ASKED):
                raise Broken("work goes on at the provider for a job that has ended")

    def _check_alarms(self, number: int) -> None:
        """With nothing heard but alarms the job ends."""
        for _ in range(ALARMS):
            job = self._jobs[number]
            if job.final:
                return
            due: At = "due" if job.wake_at and job.wake_at < DEADLINE else "late"
            number = self._decide(number, ("woke", 0), due).job
        # The alarm of a job that rings or polls returns until the deadline.
        for _ in range(ALARMS):
            if self._jobs[number].final:
                return
            number = self._decide(number, ("woke", 0), "late").job
        raise Broken(f"only alarms, and it never ends: {brief(self._jobs[number])}")

    def _check_healing(self, state: State, job: Job) -> None:
        """Every webhook is lost and every worker dead: what can be asked is found out."""
        number, works = state.job, list(state.works)
        mine = [r for r, (a, _) in enumerate(self._model.runs) if a == job.attempt]
        alive = [r for r in mine if works[r] & Work.CREATED]
        for run in alive:
            if not works[run] & Work.ENDED:
                works[run] |= Work.SUCCEEDED
        hopeful = self._askable(job, works, alive)
        at: At = "due"
        for turn in range(ALARMS):
            job = self._jobs[number]
            if job.final:
                break
            if turn > 10 or not job.wake_at or job.wake_at >= DEADLINE:
                at = "late"
            decided, rings = self._decided(number, ("woke", 0), at)
            number = decided.job
            for name in (n for ring in rings for n in self._answers(number, works, ring)):
                number = self._decide(number, name, "late" if at == "late" else "now").job
        if hopeful and self._jobs[number].status is not Status.SUCCEEDED:
            raise Broken(f"a result that could be fetched was not: {brief(self._jobs[number])}")

    def _askable(self, job: Job, works: list[int], alive: list[int]) -> bool:
        """Whether the provider has the result of the attempt in charge and can be asked for it."""
        if len(alive) != 1 or not self.world.fetch or self.world.repeatable:
            return False
        if job.ending or job.status not in (Status.RUNNING, Status.WAITING):
            return False
        if job.phase is Phase.COLLECTING:
            return True
        known = job.current.external_id is not None
        asked = job.phase is Phase.UNKNOWN and (
            job.check_at == job.deadline or job.checks + 1 >= job.policy.unknown_checks
        )
        succeeded = works[alive[0]] & Work.ENDED == Work.SUCCEEDED
        return succeeded and (known or (self.world.find and not asked))

    def _answers(self, number: int, works: list[int], ring: Ring) -> Iterator[EventName]:
        """What asking the provider, or the collector, brings."""
        job = self._jobs[number]
        attempt = job.numbered(ring.attempt)
        known = ring.external_id or (attempt and attempt.external_id)
        for run, (number_, _) in enumerate(self._model.runs):
            work = works[run]
            if number_ != ring.attempt or not work & Work.CREATED:
                continue
            mine = known == self._model.external_id(run)
            match ring.effect:
                case Effect.FIND if self.world.find:
                    yield "accepted", run
                case Effect.FETCH if mine and self.world.fetch:
                    end = [n for n in ("succeeded", "failed", "canceled") if self._is(work, n)]
                    yield (end[0] if end else "progressed"), run
                case Effect.CANCEL if mine and self.world.cancel and not work & Work.ENDED:
                    works[run] |= Work.CANCELED
                    yield "canceled", run
                case Effect.COLLECT:
                    yield from ((f"stored{file}", 0) for file in range(self.world.files))

    @staticmethod
    def _is(work: int, name: str) -> bool:
        return bool(work & getattr(Work, name.upper()))

    def _way(self, came: dict[State, tuple[State, str] | None], state: State) -> str:
        """The steps to a state."""
        steps = []
        step = came[state]
        while step is not None:
            before, word = step
            steps.append(f"{word:<36} {self._said(state)}")
            state, step = before, came[before]
        return "\n".join(reversed(steps))

    def _said(self, state: State) -> str:
        job = self._jobs[state.job]
        ids = [a.external_id for a in job.attempts]
        runs = ", ".join(Run(r).name.lower() for r in state.runs)
        late = " late" if state.late else ""
        return f"{job.status}/{job.phase} attempt {job.attempt} {ids} [{runs}] {state.works}{late}"


def brief(job: Job) -> str:
    """What differs from job to job."""
    shown = ("status", "phase", "ending", "attempt", "check_at", "checks", "progress", "error")
    said = ", ".join(f"{name}={getattr(job, name)}" for name in shown if getattr(job, name))
    tries = " ".join(f"{a.number}:{a.nonce}:{a.external_id}" for a in job.attempts)
    return f"{said}, attempts {tries}"


def canonical(job: Job) -> Job:
    """The job with its instants, words and unbounded counts made equal where they mean the same."""
    counted = job.status is Status.CANCELING or job.phase in (Phase.COLLECTING, Phase.UNKNOWN)
    bounded = job.status is Status.CANCELING or job.phase is Phase.COLLECTING
    check_at = job.check_at
    if check_at is not None:
        check_at = DEADLINE if check_at >= DEADLINE and not bounded else SOON
    attempts = (
        replace(a, token=Token(f"token{a.number}"), worker=None, started_at=None)
        for a in job.attempts
    )
    return replace(
        job,
        reason="",
        check_at=check_at,
        checks=job.checks if counted else 0,
        attempts=tuple(attempts),
        started_at=None,
        finished_at=None,
        error=job.error and ErrorInfo(job.error.kind, ""),
    )


def faults(job: Job, transition: Transition) -> Iterator[str]:
    """What is wrong with a decision, whatever was decided."""
    after = transition.after
    patch = patch_between(job, after)
    if (after.wake_at is None) is not after.final:
        yield "an open job has an alarm and a final one has none"
    if job.final and after != job:
        yield "final is final"
    if transition.disposition is Disposition.IGNORED and after != job:
        yield "ignored changes nothing"
    if transition.disposition is Disposition.QUIET and patch:
        yield "a change without history"
    if transition.disposition is Disposition.APPLIED and not patch:
        yield "history without a change"
    if after.attempt == job.attempt and job.progress and after.progress:
        was, now = job.progress.fraction, after.progress.fraction
        if was is not None and (now is None or now < was):
            yield "progress goes back"
    if (after.phase is not None) and after.status not in (Status.WAITING, Status.CANCELING):
        yield "a phase without waiting"
    if (after.status is Status.WAITING) and after.phase is None:
        yield "waiting for nothing"
    if after.ending is None and after.status is Status.CANCELING:
        yield "canceling without an end in mind"
    if after.status is Status.SUCCEEDED and (after.result is None or after.result.uncollected):
        yield "succeeded without its result"
    if after.status is Status.FAILED and after.error is None:
        yield "failed without an error"
    if len(after.attempts) > after.max_attempts:
        yield "more attempts than allowed"
    for old, new in zip(job.attempts, after.attempts, strict=False):
        if old.external_id not in (None, new.external_id) or old.token != new.token:
            yield "an attempt changed who it is"


__all__ = ["Broken", "Custody", "Explored", "World", "explore"]
