"""A model of everything round one job: workers, provider, deliveries, collector, user and clock.

A state is a tuple of small integers: the job (as a number, see `explorer`), one place per worker's
run, the provider's work for each run, and what the clock and the broker have done. `moves` lists
what can happen next. Nothing is forbidden that the real world allows: a message may be lost,
repeated and late, a process may die between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

from agentflow.core.events import (
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
    Succeeded,
    Woke,
)
from agentflow.core.job import Job, Phase, Status
from agentflow.core.policy import Abilities, Policy
from agentflow.core.results import Artifact, Custody, Result
from agentflow.errors import OutcomeUnknown, ProviderError, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What kind of task and provider, and how hostile."""

    name: str
    webhooks: Literal["per_request", "account", "none"] = "per_request"
    fetch: bool = True
    find: bool = False
    cancel: bool = True
    repeatable: bool = False
    on_unknown: Literal["fail", "retry", "ask"] = "fail"
    max_attempts: int = 2
    askings: tuple[int, ...] = (2, 1)
    """How many workers ask for each attempt."""
    files: int = 0
    thin: bool = False
    """Webhooks say only that something changed."""
    bare: bool = False
    """Webhooks carry no external id."""
    synchronous: bool = False
    """The call itself may answer with the result."""
    contradictory: bool = False
    """The provider may tell more than one end of the same work."""

    @property
    def policy(self) -> Policy:
        return Policy(
            repeatable=self.repeatable,
            on_unknown=self.on_unknown,
            max_attempts=self.max_attempts,
            unknown_checks=2,
            cancel_checks=2,
            collect_checks=2,
            backoff=0.0,
        )

    @property
    def abilities(self) -> Abilities:
        return Abilities(
            webhooks=self.webhooks != "none",
            fetch=self.fetch,
            find=self.find,
            cancel=self.cancel,
        )


class Run(IntEnum):
    """Where one worker's handling of one message stands."""

    IDLE = 0
    ASKED = 1
    GHOST = 2
    """Dead, its claim still on the way."""
    GRANTED = 3
    CALLING = 4
    ACCEPTED = 5
    """From here to GAVE_UP: the outcome lies in the spool until it is confirmed."""
    REFUSED = 6
    UNSURE = 7
    DELIVERED = 8
    HANDED_BACK = 9
    GAVE_UP = 10
    OVER = 11


class Work:
    """Bits: what became of one run's call at the provider, and what was said about it."""

    CALLED = 1
    CREATED = 2
    SUCCEEDED = 4
    FAILED = 8
    CANCELED = 16
    ASKED = 32
    """The provider was asked to cancel it."""
    TOLD = 64
    """A fact with its external id was heard."""
    REFUSED = 128
    """The call surely had no effect."""
    ENDED = SUCCEEDED | FAILED | CANCELED


ENDS = ((Work.SUCCEEDED, "succeeded"), (Work.FAILED, "failed"), (Work.CANCELED, "canceled"))

EventName: TypeAlias = tuple[str, int]
"""What is said, and which run (or file) it is about."""

At: TypeAlias = Literal["now", "late", "due"]
"""In time, after the deadline, or when the alarm is due."""


class State(NamedTuple):
    job: int
    late: bool
    rung: int
    """A bit for each attempt whose message is in the broker."""
    runs: tuple[int, ...]
    works: tuple[int, ...]


class Decided(NamedTuple):
    """What a decision did, as far as the world can tell."""

    job: int
    calls: int
    cancels: tuple[tuple[int, str | None], ...]


Decide: TypeAlias = Callable[[int, EventName, At], Decided]
Move: TypeAlias = tuple[str, State]


class Model:
    """The moves of one world. `decide` and `job` come from the explorer, which knows the machine."""

    def __init__(self, world: World, decide: Decide, job: Callable[[int], Job]) -> None:
        self.world = world
        self.runs = [(a, n) for a, count in enumerate(world.askings, 1) for n in range(count)]
        self.events = dict(self._events())
        self._decide = decide
        self._job = job

    def external_id(self, run: int) -> str:
        return f"work{run}"

    def nonce(self, run: int) -> str:
        return f"nonce{run}"

    def result(self, run: int) -> Result:
        files = [Artifact(f"https://acme/{run}/{i}") for i in range(self.world.files)]
        return Result(output=run, artifacts=files)

    def _events(self) -> Iterator[tuple[EventName, Event]]:
        """Everything that can be said, by name."""
        yield ("woke", 0), Woke()
        yield ("cancel_requested", 0), CancelRequested()
        for run, (attempt, _) in enumerate(self.runs):
            id = self.external_id(run)
            yield ("started", run), Started(self.nonce(run), f"worker{run}", attempt=attempt)
            yield ("accepted", run), Accepted(id, attempt=attempt)
            yield ("refused", run), Failed(Unavailable(), attempt=attempt)
            yield ("unsure", run), Failed(OutcomeUnknown(), attempt=attempt)
            yield ("delivered", run), Succeeded(result=self.result(run), attempt=attempt)
            yield ("handed_back", run), Abandoned(called=False, attempt=attempt)
            yield ("gave_up", run), Abandoned(called=True, attempt=attempt)
            for bare, known in (("", id), ("_bare", None)):
                told = {"attempt": attempt, "external_id": known}
                yield (f"progressed{bare}", run), Progressed(0.5, **told)
                yield (f"changed{bare}", run), Changed(**told)
                yield (f"succeeded{bare}", run), Succeeded(result=self.result(run), **told)
                retryable = ProviderError(retryable=True)
                yield (f"failed{bare}", run), Failed(retryable, **told)
                yield (f"canceled{bare}", run), Canceled(**told)

    def event(self, job: Job, name: EventName) -> Event:
        """The event of that name. Files are named after the job's own: `stored0`, `lost1`."""
        if name in self.events:
            return self.events[name]
        custody = Custody.STORED if name[0].startswith("stored") else Custody.LOST
        files = job.result.artifacts if job.result else ()
        index = int(name[0][-1])
        copied = [replace(f, status=custody) for f in files[index : index + 1]]
        return Collected(attempt=job.attempt, artifacts=copied)

    def moves(self, state: State) -> Iterator[Move]:
        """Every next state, each with a word for it."""
        for run in range(len(self.runs)):
            yield from self._worker(state, run)
            if state.works[run] & Work.CREATED:
                yield from self._provider(state, run)
                yield from self._told(state, run)
        yield from self._others(state)

    def _worker(self, state: State, run: int) -> Iterator[Move]:
        attempt, asking = self.runs[run]
        where = state.runs[run]
        match where:
            case Run.IDLE:
                first = asking == 0 or state.runs[run - 1] != Run.IDLE
                if state.rung >> attempt & 1 and first:
                    yield "ask", self._at(state, run, Run.ASKED)
            case Run.ASKED:
                heard = self._tell(state, ("started", run))
                yield "claim, answer lost", heard
                yield "claim", self._at(heard, run, self._answer(heard, run))
                yield "dies asking", self._at(state, run, Run.GHOST)
                if self.world.repeatable:
                    yield from self._calls(state, run)
            case Run.GHOST:
                heard = self._tell(state, ("started", run))
                yield "claim of the dead", self._at(heard, run, Run.OVER)
            case Run.GRANTED:
                yield from self._calls(state, run)
                yield "dies granted", self._at(state, run, Run.OVER)
                yield "stops before the call", self._at(state, run, Run.HANDED_BACK)
            case Run.CALLING:
                yield from self._answers(state, run)
            case Run.HANDED_BACK:  # by the envelope's id it is applied once
                heard = self._tell(state, ("handed_back", run))
                yield "handed back", self._at(heard, run, Run.OVER)
                yield "spool lost", self._at(state, run, Run.OVER)
            case Run.ACCEPTED | Run.REFUSED | Run.UNSURE | Run.DELIVERED | Run.GAVE_UP:
                name = Run(where).name.lower()
                heard = self._tell(state, (name, run))
                yield f"reports {name}, confirmation lost", heard
                yield f"reports {name}", self._at(heard, run, Run.OVER)
                yield "spool lost", self._at(state, run, Run.OVER)

    def _answer(self, state: State, run: int) -> Run:
        """What the writer says to a claim: the same to the same nonce."""
        job = self._job(state.job)
        mine = job.current.number == self.runs[run][0] and job.current.nonce == self.nonce(run)
        return Run.GRANTED if job.status is Status.RUNNING and mine else Run.OVER

    def _calls(self, state: State, run: int) -> Iterator[Move]:
        calling = self._at(state, run, Run.CALLING)
        yield "calls", self._mark(calling, run, Work.CALLED | Work.CREATED)
        yield "calls in vain", self._mark(calling, run, Work.CALLED)

    def _answers(self, state: State, run: int) -> Iterator[Move]:
        yield "dies calling", self._at(state, run, Run.OVER)
        yield "stops calling", self._at(state, run, Run.GAVE_UP)
        yield "no answer", self._at(state, run, Run.UNSURE)
        work = state.works[run]
        if not work & Work.CREATED:
            refused = self._mark(state, run, Work.REFUSED)
            yield "call refused", self._at(refused, run, Run.REFUSED)
        elif self.world.synchronous:
            done = self._mark(state, run, Work.SUCCEEDED)
            yield "call delivers", self._at(done, run, Run.DELIVERED)
        else:
            yield "call accepted", self._at(state, run, Run.ACCEPTED)

    def _provider(self, state: State, run: int) -> Iterator[Move]:
        work = state.works[run]
        if work & Work.ENDED and not self.world.contradictory:
            return
        if not work & Work.SUCCEEDED:
            yield "succeeds", self._mark(state, run, Work.SUCCEEDED)
        if not work & Work.FAILED:
            yield "fails", self._mark(state, run, Work.FAILED)
        if work & Work.ASKED and not work & Work.CANCELED:
            yield "is canceled", self._mark(state, run, Work.CANCELED)

    def _told(self, state: State, run: int) -> Iterator[Move]:
        """Deliveries by webhook, poll and find: any time, any number, of any past state."""
        work, world = state.works[run], self.world
        known = self._known(state, run)
        routed = world.webhooks == "per_request" or (world.webhooks == "account" and known)
        polled = world.fetch and known
        if world.find:
            yield "found", self._mark(self._tell(state, ("accepted", run)), run, Work.TOLD)
        if routed and world.thin:
            yield "webhook", self._hear(state, run, "changed")
        if polled or (routed and not world.thin):
            bare = "_bare" if world.bare and not polled else ""
            yield "heard", self._hear(state, run, f"progressed{bare}")
            for bit, name in ENDS:
                if work & bit:
                    yield "heard", self._hear(state, run, name + bare)
        elif work & Work.CANCELED:
            yield "cancel answered", self._hear(state, run, "canceled")

    def _others(self, state: State) -> Iterator[Move]:
        job = self._job(state.job)
        if job.final:
            return
        yield "user cancels", self._tell(state, ("cancel_requested", 0))
        if not state.late:
            yield "deadline passes", state._replace(late=True)
        if state.late or (job.wake_at and job.wake_at < job.deadline):
            yield "alarm", self._tell(state, ("woke", 0), due=True)
        if job.phase is Phase.COLLECTING:
            for file in range(self.world.files):
                yield "file stored", self._tell(state, (f"stored{file}", job.attempt))
                yield "file lost", self._tell(state, (f"lost{file}", job.attempt))

    def _known(self, state: State, run: int) -> bool:
        attempt = self._job(state.job).numbered(self.runs[run][0])
        return attempt is not None and attempt.external_id == self.external_id(run)

    def _hear(self, state: State, run: int, name: str) -> State:
        heard = self._tell(state, (name, run))
        return heard if name.endswith("_bare") else self._mark(heard, run, Work.TOLD)

    def _tell(self, state: State, name: EventName, *, due: bool = False) -> State:
        """The writer applies the event; rings for calls and cancels take effect."""
        at: At = "late" if state.late else ("due" if due else "now")
        decided = self._decide(state.job, name, at)
        works = state.works
        for attempt, id in decided.cancels:
            works = self._asked(works, decided.job, attempt, id)
        return state._replace(job=decided.job, rung=state.rung | decided.calls, works=works)

    def _asked(
        self, works: tuple[int, ...], job: int, attempt: int, id: str | None
    ) -> tuple[int, ...]:
        """A cancel reaches the provider if the ring or the row says what to cancel."""
        numbered = self._job(job).numbered(attempt)
        known = id or (numbered and numbered.external_id)
        return tuple(
            work | Work.ASKED if self.external_id(run) == known else work
            for run, work in enumerate(works)
        )

    @staticmethod
    def _at(state: State, run: int, where: Run) -> State:
        runs = (*state.runs[:run], int(where), *state.runs[run + 1 :])
        return state._replace(runs=runs)

    @staticmethod
    def _mark(state: State, run: int, bits: int) -> State:
        works = (*state.works[:run], state.works[run] | bits, *state.works[run + 1 :])
        return state._replace(works=works)
