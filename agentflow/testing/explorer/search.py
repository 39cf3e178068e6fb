"""The search itself: breadth first, so that a broken rule comes with the shortest way there.

Time is abstract: an alarm is due or not, the deadline has passed or not; what no decision depends
on is taken away from each job. So the states are finite in number.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agentflow.core.job import FINAL, Attempt, Job, Phase, Status
from agentflow.core.machine import decide
from agentflow.core.transition import RANDOM_BYTES, Effect, Ring
from agentflow.testing.explorer.moves import At, Decided, EventName, Moves
from agentflow.testing.explorer.rules import (
    Broken,
    brief,
    call_faults,
    canonical,
    faults,
    file_faults,
    result_faults,
    stray_faults,
)
from agentflow.testing.explorer.world import ENDS, Run, State, Work, World, external_id
from agentflow.types import JobId, Token

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(days=15)
DEADLINE = NOW + timedelta(days=30)
LATE = DEADLINE + timedelta(hours=1)
RANDOM = bytes(RANDOM_BYTES)

ALARMS = 10
"""So many alarms in a row, with nothing else heard, end any job whose deadline has passed."""


@dataclass(frozen=True, slots=True)
class Explored:
    """What a search saw: `jobs` differ in a way that decisions depend on, `decisions` are made
    for different jobs, events or times, `finals` counts states by the job's final status."""

    world: World
    states: int
    transitions: int
    jobs: int
    decisions: int
    finals: dict[str, int]

    def __str__(self) -> str:
        finals = ", ".join(f"{count:,} {status}" for status, count in sorted(self.finals.items()))
        return (
            f"{self.world.name}: {self.states:,} states ({finals}),"
            f" {self.transitions:,} transitions, {self.decisions:,} decisions on {self.jobs:,} jobs"
        )


def explore(world: World) -> Explored:
    """Every state that can be reached. Raises `Broken`."""
    return Search(world).run()


class Search:
    def __init__(self, world: World) -> None:
        self.world = world
        self._jobs: list[Job] = []
        self._numbers: dict[str, int] = {}
        self._decisions: dict[tuple[int, EventName, At], tuple[Decided, tuple[Ring, ...]]] = {}
        self._healed: set[tuple[int, tuple[int, ...]]] = set()
        self._came: dict[State, tuple[State, str] | None] = {}
        self._moves = Moves(world, self._jobs.__getitem__, self._decide)

    def run(self) -> Explored:
        state = self._start()
        self._came[state] = None
        waiting = deque([state])
        transitions = 0
        finals: Counter[Status] = Counter()
        try:
            while waiting:
                state = waiting.popleft()
                self._check(state)
                finals[self._jobs[state.job].status] += 1
                for word, after in self._moves.after(state):
                    transitions += 1
                    if after not in self._came:
                        self._came[after] = (state, word)
                        waiting.append(after)
        except Broken as broken:
            raise Broken(f"{broken}\n{self._way(state)}") from broken
        ended = {status.value: finals[status] for status in Status if status in FINAL & set(finals)}
        jobs, decisions = len(self._jobs), len(self._decisions)
        return Explored(self.world, len(self._came), transitions, jobs, decisions, ended)

    def _start(self) -> State:
        runs = len(self._moves.runs)
        adopted = self.world.adopted
        job = Job(
            id=JobId("job_" + "0" * 32),
            task="acme.make",
            status=Status.WAITING if adopted else Status.QUEUED,
            phase=Phase.PROVIDER if adopted else None,
            created_at=NOW,
            deadline=DEADLINE,
            check_at=SOON,
            attempts=(
                Attempt(1, Token("token1"), external_id=external_id(0) if adopted else None),
            ),
            max_attempts=len(self.world.askings),
            policy=self.world.policy,
            abilities=self.world.abilities,
        )
        if adopted:
            works = (Work.CALLED | Work.CREATED | Work.TOLD,)
            return State(self._number(job), False, 0, (int(Run.OVER),), works)
        return State(self._number(job), False, 0b10, (0,) * runs, (0,) * runs)

    # Decisions, each made and checked once

    def _decide(self, number: int, name: EventName, at: At) -> Decided:
        return self._decided(number, name, at)[0]

    def _decided(self, number: int, name: EventName, at: At) -> tuple[Decided, tuple[Ring, ...]]:
        key = (number, name, at)
        if key not in self._decisions:
            self._decisions[key] = self._make(number, name, at)
        return self._decisions[key]

    def _make(self, number: int, name: EventName, at: At) -> tuple[Decided, tuple[Ring, ...]]:
        job = self._jobs[number]
        event = self._moves.event(job, name)
        now = {"now": NOW, "late": LATE, "due": job.wake_at or NOW}[at]
        said = f"{brief(job)}\n{event} at {now}"
        try:
            transition = decide(job, event, now, RANDOM)
        except Exception as error:
            raise Broken(f"{error!r}: {said}") from error
        for fault in (*faults(job, event, transition), *file_faults(job, transition.after, now)):
            raise Broken(f"{fault}: {said}\n{transition.reason}: {brief(transition.after)}")
        calls, cancels = 0, []
        for ring in transition.rings:
            if ring.effect is Effect.CALL:
                calls |= 1 << ring.attempt
            elif ring.effect is Effect.CANCEL and self.world.cancel:
                cancels.append((ring.attempt, ring.external_id))
        return Decided(self._number(transition.after), calls, tuple(cancels)), transition.rings

    def _number(self, job: Job) -> int:
        same = canonical(job)
        key = repr(same)
        if key not in self._numbers:
            number = self._numbers[key] = len(self._jobs)
            self._jobs.append(same)
            if same.final:
                for name in self._moves.everything():  # each is refused by `faults` if it is heard
                    self._decide(number, name, "late")
            else:
                self._check_silence(number)
        return self._numbers[key]

    # What holds in every state

    def _check(self, state: State) -> None:
        job, attempts = self._jobs[state.job], self._moves.runs
        for fault in (
            *call_faults(self.world, attempts, state.works),
            *result_faults(job, attempts),
        ):
            raise Broken(fault)
        if job.final:
            for fault in stray_faults(self.world, state.works):
                raise Broken(fault)
        elif not state.late and (state.job, state.works) not in self._healed:
            self._healed.add((state.job, state.works))
            self._check_healing(state)

    def _check_silence(self, number: int) -> None:
        """Nothing is heard but alarms: after the deadline a few of them end the job."""
        ats: list[At] = ["due", "late"]
        for at in ats:
            for _ in range(ALARMS):
                job = self._jobs[number]
                if job.final:
                    return
                early = at == "due" and job.wake_at is not None and job.wake_at < DEADLINE
                if early or at == "late":
                    number = self._decide(number, ("woke", 0), at)[0]
        raise Broken(f"with nothing heard it never ends: {brief(self._jobs[number])}")

    def _check_healing(self, state: State) -> None:
        """Every worker is dead and every webhook lost: what can be asked for is found out."""
        number, works = state.job, list(state.works)
        for run, work in enumerate(works):
            if work & Work.CREATED and not work & Work.ENDED:
                works[run] |= Work.SUCCEEDED
        hopeful = self._askable(self._jobs[number], works)
        for _ in range(ALARMS):
            job = self._jobs[number]
            if job.wake_at is None or job.wake_at >= DEADLINE:
                break
            decided, rings = self._decided(number, ("woke", 0), "due")
            number = decided.job
            for ring in rings:
                for name in self._answers(number, works, ring):
                    number = self._decide(number, name, "now").job
        if hopeful and self._jobs[number].status is not Status.SUCCEEDED:
            raise Broken(f"what can be fetched is fetched: {brief(self._jobs[number])}")

    def _askable(self, job: Job, works: list[int]) -> bool:
        """Whether the provider has the result of the attempt in charge and can be asked for it."""
        if job.phase is Phase.COLLECTING:
            return True
        if job.ending or job.status not in (Status.RUNNING, Status.WAITING):
            return False
        mine = [w for a, w in zip(self._moves.runs, works, strict=True) if a == job.attempt]
        created = [w & Work.ENDED for w in mine if w & Work.CREATED]
        if created != [Work.SUCCEEDED] or not self.world.fetch or self.world.repeatable:
            return False
        last = job.phase is Phase.UNKNOWN and job.checks + 1 >= job.policy.unknown_checks
        asked = job.phase is Phase.UNKNOWN and job.check_at == job.deadline
        findable = self.world.find and not last and not asked
        return job.current.external_id is not None or findable

    def _answers(self, number: int, works: list[int], ring: Ring) -> Iterator[EventName]:
        """What a ring brings when the provider, or the collector, answers it."""
        attempt = self._jobs[number].numbered(ring.attempt)
        known = ring.external_id or (attempt and attempt.external_id)
        if ring.effect is Effect.COLLECT:
            yield from ((f"stored{file}", 0) for file in range(self.world.files))
        for run, work in enumerate(works):
            if self._moves.runs[run] != ring.attempt or not work & Work.CREATED:
                continue
            match ring.effect:
                case Effect.FIND:
                    yield "accepted", run
                case Effect.FETCH if known == external_id(run):
                    yield from ((name, run) for bit, name in ENDS if work & bit)
                case Effect.CANCEL if known == external_id(run) and not work & Work.ENDED:
                    works[run] |= Work.CANCELED
                    yield "canceled", run

    # The way to a broken rule

    def _way(self, state: State) -> str:
        steps = []
        came = self._came[state]
        while came is not None:
            steps.append(f"{came[1]:<36} {self._said(state)}")
            state, came = came[0], self._came[came[0]]
        return "\n".join(reversed(steps))

    def _said(self, state: State) -> str:
        job = self._jobs[state.job]
        ids = [a.external_id for a in job.attempts]
        runs = ", ".join(Run(run).name.lower() for run in state.runs)
        late = " late" if state.late else ""
        return f"{job.status}/{job.phase} attempt {job.attempt} {ids} [{runs}] {state.works}{late}"
