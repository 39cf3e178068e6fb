"""One turn of the writer: everything heard, received and due, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import structlog
from tortoise.backends.base.client import BaseDBAsyncClient

from agentflow.core.events import Envelope, OverBudget, Source, Started, Woke
from agentflow.core.job import Phase
from agentflow.core.transition import Effect
from agentflow.store.budgets import Known
from agentflow.store.sql import Sql
from agentflow.store.usage import record_usage
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.conversation import Beat, Claim, Denied, Heard
from agentflow.types import JobId
from agentflow.writer.batch import Batch, Held
from agentflow.writer.callbacks import call_back
from agentflow.writer.commands import carry_out
from agentflow.writer.done import Done
from agentflow.writer.inbox import (
    Places,
    expire_parked,
    match,
    places_of,
    received,
    settle,
    strays_of,
    understand,
    unpark,
)
from agentflow.writer.ledger import Ledger
from agentflow.writer.letter import Letter
from agentflow.writer.loading import due_jobs
from agentflow.writer.poison import keep_poison
from agentflow.writer.purse import Purse, Refused, Waits
from agentflow.writer.saying import envelope_of, grant, holds
from agentflow.writer.teller import Teller
from agentflow.writer.tools import Tools

log = structlog.get_logger(__name__)

MOST = 200


class Turn:
    def __init__(
        self,
        tools: Tools,
        tx: BaseDBAsyncClient,
        now: datetime,
        heard: Sequence[Heard],
        *,
        silent: datetime | None,
        paused: set[str],
        budgets: Known | None = None,
        look_again: set[tuple[str, str]] | None = None,
        calls_handlers: bool = True,
        only: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`silent` is the instant up to which everything said was read: alarms set for later are
        not for now; None for no alarms at all. `only` is the one inbox row or due job to look at,
        after a batch of them failed."""
        self.only = only
        self.silent, self.paused = silent, paused
        self.look_again = look_again or set()
        self.tools, self.now, self.heard = tools, now, heard
        self.sql = Sql(tx)
        self.ledger = Ledger(tools.catalogue)
        self.batch = Batch(now, self.ledger)
        self.purse = Purse(self.sql, now, budgets or {}, self.ledger)
        self.teller = Teller(self.sql, tools, now, calls_handlers=calls_handlers, metrics=metrics)
        self.letters: list[Letter] = []
        self.done = Done()
        self.skipped: set[JobId] = set()
        """Jobs that wait for the next turn: their handlers have no time, or another writer has
        them."""

    async def take(self) -> Done:
        """Do it all but the commit. What is raised undoes everything."""
        self.letters = [x for x in await received(self.sql, MOST) if self._wanted(x.id)]
        again = await understand(self.sql, self.letters, self.tools.catalogue, self.now)
        self.letters += again
        drained = len(self.letters) < MOST and len(self.heard) < MOST
        self.done.more = not drained
        due = await self._due() if drained else []
        envelopes = [(h, self._envelope(h)) for h in self.heard]
        await self._hold(envelopes, due)
        await self._apply_heard(envelopes)
        self._apply_letters(self.letters)
        for id in due:
            self._wake(JobId(id))
        self.done.woken = len(due)
        await self._match_parked(due)
        await self._write_jobs()
        await self._write_letters()
        self.done.new_jobs += self.teller.new_jobs
        self.done.owed = self.teller.owed
        await self._name_strays()
        self._answer(envelopes)
        return self.done

    async def _due(self) -> list[str]:
        """The jobs whose alarm goes off. Asked for when everything heard was read: only then is
        silence judged (rule 8)."""
        if self.silent is None:
            return []
        rooms = self.tools.rooms(self.paused)
        due = await due_jobs(
            self.sql, self.now, self.silent, rooms, self.paused, MOST, self.tools.turns
        )
        await expire_parked(self.sql, self.now)
        return [id for id in due if self._wanted(id)]

    async def _hold(
        self, envelopes: Sequence[tuple[Heard, Envelope | None]], due: Sequence[str]
    ) -> None:
        """Read every job this turn is about, and which envelopes were applied before."""
        said = [e for _, e in envelopes if e]
        said += [e for letter in self.letters for e in letter.envelopes]
        beats = {j for h in self.heard if isinstance(h.said, Beat) for j, _ in h.said.attempts}
        about = {e.job_id for e in said} | {JobId(id) for id in due}
        await self._load(about | beats)
        await self.batch.know(self.sql, said)
        await self.purse.open(h for id, h in self.batch.held.items() if id in about)
        for h in self.heard:
            if isinstance(h.said, Beat):
                for job, attempt in h.said.attempts:
                    self.batch.beat(job, attempt)

    async def _load(self, ids: set[JobId]) -> None:
        busy = await self.batch.read(self.sql, ids)
        self.skipped |= busy
        self.done.crowded |= bool(busy)

    def _envelope(self, heard: Heard) -> Envelope | None:
        if isinstance(heard.said, Claim) and holds(self.paused, heard.said):
            return None
        return envelope_of(heard, self.now)

    def _wanted(self, id: str) -> bool:
        return self.only is None or id == self.only

    async def _apply_heard(self, envelopes: Sequence[tuple[Heard, Envelope | None]]) -> None:
        """What nobody can decide on is kept with its traceback, and its sender goes on."""
        for heard, envelope in envelopes:
            if envelope is None:
                continue
            try:
                self._apply(envelope)
            except Exception as error:  # a bug in the machine; it has changed nothing
                log.error("Poison", job_id=envelope.job_id, error=str(error)[:500])
                await keep_poison(self.sql, heard, error, self.now)

    def _apply(self, envelope: Envelope) -> None:
        """A claim that would be granted asks the budgets first."""
        held, event = self.batch.held.get(envelope.job_id), envelope.event
        asks = isinstance(event, Started) and held is not None and self.batch.would_grant(envelope)
        verdict = self.purse.admit(held) if asks and held is not None else None
        match verdict:
            case Refused(message=message):
                refusal = OverBudget(message, attempt=event.attempt)
                id = envelope.id.replace("claim:", "budget:", 1)
                self.batch.apply(replace(envelope, id=id, event=refusal))
            case Waits():
                self.batch.hold_back(envelope.job_id)
            case None:
                self.batch.apply(envelope)

    def _apply_letters(self, letters: Sequence[Letter]) -> None:
        for letter in letters:
            for envelope in letter.envelopes:
                job = self.batch.job(envelope.job_id)
                if envelope.job_id in self.skipped:
                    letter.waits = True
                    break
                if job is None:
                    letter.fail("there is no such job")
                    break
                letter.homes.setdefault(job.tenant, job.id)
                try:
                    reason = self.batch.apply(envelope)
                except Exception as error:  # this letter alone is set aside
                    letter.fail(error)
                    break
                letter.reason = reason or letter.reason or "repeated"

    def _wake(self, id: JobId) -> None:
        job = self.batch.job(id)
        if job is None:
            return
        try:
            self.batch.apply(Envelope(f"clock:{job.version}", Source.CLOCK, self.now, id, Woke()))
        except Exception as error:  # a bug in the machine: the others' alarms must not wait for it
            log.error("Poison", job_id=id, error=str(error)[:500])
            self.batch.postpone(id)

    async def _match_parked(self, due: Sequence[str]) -> None:
        """Deliveries that came before their attempt was known (both sides look second)."""
        for _ in range(3):
            places = self._places(due) | await places_of(self.sql, self.look_again)
            self.look_again = set()
            here = [x for x in self.letters if any((x.provider, e) in places for e in x.unmatched)]
            known = {row for x in self.letters for row in x.unparked}
            parked = await unpark(self.sql, set(places))
            letters = [*here, *(x for x in parked if not known.issuperset(x.unparked))]
            if not letters:
                return
            await match(self.sql, letters, self.tools.catalogue, self.now, places)
            said = [e for x in letters for e in x.envelopes]
            more = {e.job_id for e in said} - self.batch.held.keys()
            await self._load(more)
            await self.purse.open(h for id, h in self.batch.held.items() if id in more)
            await self.batch.know(self.sql, said)
            self._apply_letters(letters)
            for letter in letters[len(here) :]:
                letter.event = None  # `on_webhook` saw it when it came
                self.letters.append(letter)
            due = ()

    def _places(self, due: Sequence[str]) -> Places:
        """External ids that are news, or that the alarm of a waiting job asks about."""
        places: Places = {}
        for id, held in self.batch.held.items():
            asks = id in due and held.job.phase is Phase.PROVIDER
            for attempt in held.job.attempts:
                external = attempt.external_id
                if external and (asks or external in held.learned):
                    places[held.job.provider, external] = (id, attempt.number)
        return places

    async def _write_jobs(self) -> None:
        """Handlers, then rows: a job whose handlers must wait is not written in this turn."""
        written: list[Held] = []
        for id, held in self.batch.held.items():
            if not held.entries and held.job == held.before and not held.rings:
                continue
            if await self.teller.tell(held):
                written.append(held)
            else:
                self.skipped.add(id)
        await self.batch.write(self.sql, [held.job.id for held in written])
        await self._book(written)
        self.done.new_jobs += await call_back(self.sql, written, self.tools.prepare)
        for held in written:
            self.done.written(held, self.tools.catalogue)

    async def _write_letters(self) -> None:
        """What they ask for, then their rows: but for those that wait for the next turn."""
        for letter in self.letters:
            if not self._postponed(letter):
                await self.teller.read_out(letter)
                await self.teller.retry(letter)
                if await carry_out(self.sql, letter.command, self.now):
                    self.done.paused_changed = self.done.more = True
        waiting = {x.run or x.id for x in self.letters if self._postponed(x)}
        kept = [x for x in self.letters if (x.run or x.id) not in waiting]
        self.done.more |= len(kept) < len(self.letters) or bool(self.skipped)
        await settle(self.sql, kept, self.now, self.tools.park_for)
        self.done.read += kept
        self._note_crossing(kept)

    async def _book(self, written: Sequence[Held]) -> None:
        """What the calls that ended cost, in the ledger and in the budgets."""
        entries = [
            self.ledger.entry(held.job, held.beside, closed, self.now)
            for held in written
            for closed in held.closed
        ]
        await record_usage(self.sql, [entry for entry in entries if entry is not None])
        await self.purse.settle(written)

    def _note_crossing(self, kept: Sequence[Letter]) -> None:
        """Both who parks and who learns an id look again after their commits: the later of the
        two sees the other's row (design, webhooks: insert first, look second)."""
        if not self.sql.postgres:
            return
        pairs = {(x.provider, e) for x in kept for e in x.unmatched}
        for held in self.batch.held.values():
            if held.learned and self.tools.catalogue.is_account_wide(held.job.provider):
                pairs |= {(held.job.provider, e) for e in held.learned}
        self.done.look_again = pairs
        self.done.more |= bool(pairs)

    def _postponed(self, letter: Letter) -> bool:
        """Its row stays as it is; what was applied of it is known by its envelope ids."""
        return letter.waits or any(e.job_id in self.skipped for e in letter.envelopes)

    async def _name_strays(self) -> None:
        """Who looks for a call whose answer was lost is told what came by webhook and is nobody's:
        where a provider lists nothing, it may be there."""
        for n, chore in enumerate(self.done.chores):
            if chore.kind == Effect.FIND.value:
                strays = await strays_of(self.sql, chore.task.partition(".")[0])
                self.done.chores[n] = replace(chore, strays=strays)

    def _answer(self, envelopes: Sequence[tuple[Heard, Envelope | None]]) -> None:
        for heard, envelope in envelopes:
            if envelope is not None and envelope.job_id in self.skipped:
                self.done.given_back.append(heard)
            elif isinstance(heard.said, Claim) and envelope is None:
                self.done.answers.append((heard, Denied("paused")))
            elif isinstance(heard.said, Claim):
                self.done.answers.append((heard, grant(self.batch, heard.said, self.tools)))
            else:
                self.done.answers.append((heard, None))
