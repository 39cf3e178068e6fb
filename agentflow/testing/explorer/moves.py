"""What can happen next. Nothing is forbidden that the real world allows: a message may be lost,
late and repeated, a process may die between any two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
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
from agentflow.core.results import Artifact, Custody, Result
from agentflow.errors import OutcomeUnknown, ProviderError, Unavailable
from agentflow.testing.explorer.world import ENDS, Run, State, Work, World, external_id, nonce

EventName: TypeAlias = tuple[str, int]
"""What is said, and about which run."""

FILES_END = datetime(2026, 1, 21, tzinfo=UTC)
"""When the provider deletes what it made, where it does: before the deadline."""

At: TypeAlias = Literal["now", "late", "due"]
"""In time, after the deadline, or when the alarm is due."""

Move: TypeAlias = tuple[str, State]


class Decided(NamedTuple):
    """What a decision came to, as far as the world can tell."""

    job: int
    calls: int
    """A bit for each attempt whose message was sent."""
    cancels: tuple[tuple[int, str | None], ...]
    """Attempts to cancel, with the external id where the ring carries it."""


class Moves:
    """The moves of one world. `decide` applies an event to a numbered job."""

    def __init__(
        self,
        world: World,
        job: Callable[[int], Job],
        decide: Callable[[int, EventName, At], Decided],
    ) -> None:
        self.world = world
        self.runs = [a for a, count in enumerate(world.askings, 1) for _ in range(count)]
        """The attempt of each run."""
        self._job = job
        self._decide = decide
        self._events = dict(self._told_by_all())

    def event(self, job: Job, name: EventName) -> Event:
        """The event of that name; files are those of the job: `stored0`, `lost1`."""
        if name in self._events:
            return self._events[name]
        custody = Custody.STORED if name[0].startswith("stored") else Custody.LOST
        files = job.result.artifacts if job.result else ()
        index = int(name[0][-1])
        copied = [replace(f, status=custody) for f in files[index : index + 1]]
        return Collected(attempt=job.attempt, artifacts=copied)

    def everything(self) -> Iterator[EventName]:
        return iter(self._events)

    def after(self, state: State) -> Iterator[Move]:
        """Every next state, each with a word for it. Once the job is final, only calls under way
        and what is heard of them matter."""
        job = self._job(state.job)
        for run, where in enumerate(state.runs):
            if not job.final or where >= Run.GRANTED:
                yield from self._worker(state, run, where)
            if state.works[run] & Work.CREATED:
                if not job.final:
                    yield from self._provider(state, run)
                yield from self._provider_tells(state, run)
        if not job.final:
            yield from self._others(state, job)

    def _told_by_all(self) -> Iterator[tuple[EventName, Event]]:
        """Everything that can be said except about files."""
        yield ("woke", 0), Woke()
        yield ("cancel_requested", 0), CancelRequested()
        for run, attempt in enumerate(self.runs):
            mine = external_id(run)
            end = FILES_END if self.world.expiring else None
            files = [Artifact(f"https://acme/{run}/{i}") for i in range(self.world.files)]
            files = [replace(file, expires_at=end) for file in files]
            result = Result(output=run, artifacts=files)
            failed = ProviderError(retryable=True)
            yield ("started", run), Started(nonce(run), f"worker{run}", attempt=attempt)
            yield ("accepted", run), Accepted(mine, attempt=attempt)
            yield ("refused", run), Failed(Unavailable(), attempt=attempt)
            yield ("unsure", run), Failed(OutcomeUnknown(), attempt=attempt)
            yield ("delivered", run), Succeeded(result=result, attempt=attempt)
            for word, called in (("handed_back", False), ("gave_up", True)):
                event = Abandoned(called=called, nonce=nonce(run), attempt=attempt)
                yield (word, run), event
            for tail, id_ in (("", mine), ("_bare", None)):
                yield (
                    (f"progressed{tail}", run),
                    Progressed(0.5, attempt=attempt, external_id=id_),
                )
                yield (f"changed{tail}", run), Changed(attempt=attempt, external_id=id_)
                yield (
                    (f"succeeded{tail}", run),
                    Succeeded(result=result, attempt=attempt, external_id=id_),
                )
                yield (f"failed{tail}", run), Failed(failed, attempt=attempt, external_id=id_)
                yield (f"canceled{tail}", run), Canceled(attempt=attempt, external_id=id_)

    # Workers

    def _worker(self, state: State, run: int, where: int) -> Iterator[Move]:
        match where:
            case Run.IDLE:
                attempt = self.runs[run]
                next_to_ask = run == 0 or self.runs[run - 1] != attempt or state.runs[run - 1]
                if state.rung >> attempt & 1 and next_to_ask:
                    yield "ask", moved(state, run, Run.ASKED)
            case Run.ASKED:
                heard = self._tell(state, ("started", run))
                yield "claim, answer lost", heard
                yield "claim", moved(heard, run, self._answer(heard, run))
                yield "dies asking", moved(state, run, Run.GHOST)
                yield "stops asking", moved(heard, run, Run.HANDED_BACK)
                if self.world.repeatable:
                    yield from self._calls(state, run)
            case Run.GHOST:
                heard = self._tell(state, ("started", run))
                yield "claim of the dead", moved(heard, run, Run.OVER)
            case Run.GRANTED:
                yield from self._calls(state, run)
                yield "dies granted", moved(state, run, Run.OVER)
                yield "stops before the call", moved(state, run, Run.HANDED_BACK)
            case Run.CALLING:
                yield from self._call_ends(state, run)
            case Run.HANDED_BACK:  # by its envelope's id it is applied once
                heard = self._tell(state, ("handed_back", run))
                yield "handed back", moved(heard, run, Run.OVER)
                yield "spool lost", moved(state, run, Run.OVER)
            case Run.ACCEPTED | Run.REFUSED | Run.UNSURE | Run.DELIVERED | Run.GAVE_UP:
                name = Run(where).name.lower()
                heard = self._tell(state, (name, run))
                if where == Run.ACCEPTED:
                    heard = marked(heard, run, Work.TOLD)
                yield f"reports {name}, confirmation lost", heard
                yield f"reports {name}", moved(heard, run, Run.OVER)
                yield "spool lost", moved(state, run, Run.OVER)

    def _answer(self, state: State, run: int) -> Run:
        """What the writer says to a claim: the same to the same nonce."""
        job = self._job(state.job)
        mine = job.attempt == self.runs[run] and job.current.nonce == nonce(run)
        return Run.GRANTED if job.status is Status.RUNNING and mine else Run.OVER

    def _calls(self, state: State, run: int) -> Iterator[Move]:
        calling = moved(state, run, Run.CALLING)
        yield "calls", marked(calling, run, Work.CALLED | Work.CREATED)
        yield "calls in vain", marked(calling, run, Work.CALLED)

    def _call_ends(self, state: State, run: int) -> Iterator[Move]:
        yield "dies calling", moved(state, run, Run.OVER)
        yield "stops calling", moved(state, run, Run.GAVE_UP)
        yield "no answer", moved(state, run, Run.UNSURE)
        if not state.works[run] & Work.CREATED:
            yield "call refused", moved(marked(state, run, Work.REFUSED), run, Run.REFUSED)
        elif self.world.synchronous:
            yield "call delivers", moved(marked(state, run, Work.SUCCEEDED), run, Run.DELIVERED)
        else:
            yield "call accepted", moved(state, run, Run.ACCEPTED)

    # The provider

    def _provider(self, state: State, run: int) -> Iterator[Move]:
        work = state.works[run]
        if work & Work.ENDED and not self.world.contradictory:
            return
        if not work & Work.SUCCEEDED:
            yield "succeeds", marked(state, run, Work.SUCCEEDED)
        if not work & Work.FAILED:
            yield "fails", marked(state, run, Work.FAILED)
        if work & Work.ASKED and not work & Work.CANCELED:
            yield "is canceled", marked(state, run, Work.CANCELED)

    def _provider_tells(self, state: State, run: int) -> Iterator[Move]:
        """By webhook, poll and find, at any time and any number of times, of any past moment."""
        work, world = state.works[run], self.world
        known = self._known(state, run)
        routed = world.webhooks == "per_request" or (world.webhooks == "account" and known)
        polled = world.fetch and known
        if world.find:
            yield "found", marked(self._tell(state, ("accepted", run)), run, Work.TOLD)
        if routed and world.thin:
            yield "webhook", self._hear(state, run, f"changed{'_bare' if world.bare else ''}")
        if polled or (routed and not world.thin):
            bare = "_bare" if world.bare and not polled else ""
            yield "heard", self._hear(state, run, f"progressed{bare}")
            for bit, name in ENDS:
                if work & bit:
                    yield "heard", self._hear(state, run, name + bare)
        elif work & Work.CANCELED:
            yield "cancel answered", self._hear(state, run, "canceled")

    def _known(self, state: State, run: int) -> bool:
        attempt = self._job(state.job).numbered(self.runs[run])
        return attempt is not None and attempt.external_id == external_id(run)

    # Collector, user and clock

    def _others(self, state: State, job: Job) -> Iterator[Move]:
        yield "user cancels", self._tell(state, ("cancel_requested", 0))
        if not state.late:
            yield "deadline passes", state._replace(late=True)
        if state.late or (job.wake_at and job.wake_at < job.deadline):
            yield "alarm", self._tell(state, ("woke", 0), "due")
        if job.phase is Phase.COLLECTING:
            for file in range(self.world.files):
                yield "file stored", self._tell(state, (f"stored{file}", 0))
                yield "file lost", self._tell(state, (f"lost{file}", 0))

    # The writer

    def _hear(self, state: State, run: int, name: str) -> State:
        heard = self._tell(state, (name, run))
        return heard if name.endswith("_bare") else marked(heard, run, Work.TOLD)

    def _tell(self, state: State, name: EventName, at: At = "now") -> State:
        """The writer applies the event; rings for calls and cancels take effect."""
        decided = self._decide(state.job, name, "late" if state.late else at)
        works = state.works
        for attempt, id_ in decided.cancels:
            works = self._asked(works, decided.job, attempt, id_)
        return State(decided.job, state.late, state.rung | decided.calls, state.runs, works)

    def _asked(
        self, works: tuple[int, ...], job: int, attempt: int, id_: str | None
    ) -> tuple[int, ...]:
        """A cancel reaches the provider if the ring or the row says what to cancel."""
        numbered = self._job(job).numbered(attempt)
        known = id_ or (numbered and numbered.external_id)
        return tuple(
            work | Work.ASKED if external_id(run) == known else work
            for run, work in enumerate(works)
        )


def moved(state: State, run: int, where: Run) -> State:
    runs = (*state.runs[:run], int(where), *state.runs[run + 1 :])
    return State(state.job, state.late, state.rung, runs, state.works)


def marked(state: State, run: int, bits: int) -> State:
    work = state.works[run]
    if work | bits == work:
        return state
    works = (*state.works[:run], work | bits, *state.works[run + 1 :])
    return State(state.job, state.late, state.rung, state.runs, works)
