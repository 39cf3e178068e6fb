"""The writer: the only code that updates rows. See design rules 1 and 5 to 9."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog
from tortoise.connection import get_connection
from tortoise.transactions import in_transaction

from agentflow.clock import Clock
from agentflow.core.events import Abandoned, Envelope, Source
from agentflow.store.budgets import Known, known_budgets
from agentflow.store.pauses import paused
from agentflow.store.rows import instant
from agentflow.store.sql import Sql
from agentflow.store.transactions import crossed, hold_limit, passing
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.conversation import Broker, Claim, Denied, Heard, WriterSide
from agentflow.types import JobId
from agentflow.writer.done import Done
from agentflow.writer.handlers import briefly
from agentflow.writer.inbox import received
from agentflow.writer.loading import due_jobs, next_alarm, ring_again
from agentflow.writer.owed import Owed
from agentflow.writer.poison import give_up, keep_poison
from agentflow.writer.saying import holds
from agentflow.writer.tools import Tools
from agentflow.writer.turn import MOST, Turn
from agentflow.writer.watching import watch

log = structlog.get_logger(__name__)

GAP = 2.0
"""A rest that took this many seconds too long: the process stood still and did not listen."""

CATCH_UP = 7.0
"""Seconds after a standstill in which every worker beats at least once."""


LOOK_EVERY = 0.05
"""Seconds between two looks at the alarms while there is always something to hear."""

STOP_WITHIN = 10.0

AGES = 10 * 366 * 86_400.0
"""Longer ago than any alarm was set."""

DEAF_REST = 0.2
"""Seconds between two looks while alarms are due that must not go off yet."""

PAUSES_EVERY = 1.0
"""Seconds between two looks at what is paused, and which budgets there are."""

CROWDED = 0.01
"""Seconds to leave a row to the writer who has it; longer each time, up to `CROWDED_MOST`."""

CROWDED_MOST = 0.3

REST = 30.0
"""The longest sleep; where several writers share the work, a ring may have gone to one that
died."""

REST_SHARED = 2.0


class Writer:
    """Applies what is heard, received and due, batch by batch; answers and rings after commits.

    `told` is called after each commit with the jobs that changed.
    """

    def __init__(
        self,
        tools: Tools,
        conversation: WriterSide,
        broker: Broker,
        clock: Clock,
        told: Callable[[Sequence[JobId]], None],
        *,
        shared: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        """`shared`: there may be other writers on the same database."""
        self._tools, self._conversation, self._broker = tools, conversation, broker
        self._clock, self._told = clock, told
        self._longest_rest = REST_SHARED if shared else REST
        self._least_rest = LOOK_EVERY if shared else 0.0
        self._alarms = False
        self._broker_is_empty = False
        self._stopping = False
        self._idle = asyncio.Event()
        self._deaf_until = self._looked_at = self._pauses_at = 0.0
        self._paused: set[str] = set()
        self._budgets: Known = {}
        self._look_again: set[tuple[str, str]] = set()
        self._crowded = 0.0
        self.metrics = metrics or Metrics(tools.catalogue.tasks, tools.catalogue.providers)
        self.owed = Owed(tools, clock.now, self.ring, self.metrics)
        self.turns = 0

    def ring(self) -> None:
        """Something was stored, or time moved on."""
        self._idle.clear()
        self._conversation.bell.set()

    async def run(self) -> None:
        """Until `stop`. A turn that fails is tried again envelope by envelope."""
        while not self._stopping:
            self._conversation.bell.clear()
            try:
                more = await self._turn()
                if not (more or self._conversation.bell.is_set()) and self._conversation.empty:
                    await self._rest()
            except Exception as error:  # the database is away: nothing is lost, try again
                log.error("The writer cannot write", error=briefly(error))
                await asyncio.sleep(0.5)

    async def stop(self) -> None:
        """Apply what was heard, then end `run`. What cannot be applied in time (others go on
        talking, the database is away) stays with its senders."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN):
                await self.settled()
        self._stopping = True
        self._conversation.bell.set()

    async def begin(self, *, broker_is_empty: bool) -> None:
        """Start judging silence, once everything said so far was read."""
        await self.settled()
        self._alarms, self._broker_is_empty = True, broker_is_empty
        self.ring()

    async def recover(self, report: Callable[[Envelope], Awaitable[None]]) -> None:
        """`begin`, in the only process there is: whoever is `running` now ran in the last one,
        which is dead (it held the lock), and no broker holds any message."""
        await self.settled()
        rows = await Sql(get_connection("default")).rows(
            'SELECT a."job_id", a."number", a."nonce" FROM "agentflow_attempts" a'
            ' JOIN "agentflow_jobs" j ON j."id" = a."job_id" AND j."attempt" = a."number"'
            ' WHERE j."status" = \'running\' OR (j."status" = \'canceling\' AND j."phase" IS NULL)'
        )
        now = self._clock.now()
        for row in rows:
            envelope = Envelope(
                f"abandoned:{row['number']}:{row['nonce']}",
                Source.CLOCK,
                now,
                JobId(row["job_id"]),
                Abandoned(called=True, nonce=row["nonce"], attempt=row["number"]),
            )
            await report(envelope)
        self._alarms = self._broker_is_empty = True
        self.ring()

    def deaf(self, seconds: float, *, broker_is_empty: bool = False) -> None:
        """We may have missed what was said: judge no silence for so long."""
        self._deaf_until = max(self._deaf_until, time.monotonic() + seconds)
        self._broker_is_empty |= broker_is_empty
        self.ring()

    async def settled(self) -> None:
        """Wait until everything heard and received so far is applied."""
        self.ring()
        await self._idle.wait()

    async def _turn(self) -> bool:
        began, began_ns = time.time(), time.time_ns()
        heard = self._conversation.take(MOST)
        try:
            done = await self._commit_or_isolate(heard)
        except BaseException:
            self._conversation.give_back(heard)  # what is repeated is known by its ids
            raise
        self._notice_standstill(time.time() - began - self._tools.handler_budget)
        self._look_again = done.look_again
        self.turns += 1
        ended_ns = time.time_ns()
        await self._after(done)
        watch(self.metrics, done, began_ns, ended_ns)
        await self._make_room(done)
        return done.more

    async def _make_room(self, done: Done) -> None:
        """Leave rows that another writer holds to it for a moment."""
        self._crowded = min(max(2 * self._crowded, CROWDED), CROWDED_MOST) if done.crowded else 0.0
        if self._crowded:
            await asyncio.sleep(self._crowded)

    async def _commit_or_isolate(self, heard: Sequence[Heard]) -> Done:
        try:
            return await self._commit(heard)
        except Exception as error:
            if passing(error) and not crossed(error):  # nobody's fault: the whole is tried again
                raise
            self.metrics.broken.inc()
            log.warning("A batch failed; its parts are tried singly", error=str(error)[:500])
            return await self._singly(heard)

    async def _commit(
        self,
        heard: Sequence[Heard],
        *,
        calls_handlers: bool = True,
        only: str | None = None,
    ) -> Done:
        asked = time.monotonic()
        age = await self._silence(heard)
        with hold_limit(None):
            async with in_transaction("default") as tx:
                sql = Sql(tx)
                now = await sql.now(self._clock)
                if age is not None and time.monotonic() - asked > GAP:  # more was said meanwhile
                    age = AGES
                rings = self._broker_is_empty
                if rings:  # every queued job is due for its ring
                    await ring_again(sql, now)
                await self._read_pauses(sql, heard)
                turn = Turn(
                    self._tools,
                    tx,
                    now,
                    heard,
                    silent=None if age is None else now - timedelta(seconds=age),
                    paused=self._paused,
                    budgets=self._budgets,
                    look_again=self._look_again,
                    calls_handlers=calls_handlers,
                    only=only,
                    metrics=self.metrics,
                )
                done = await turn.take()
        self._broker_is_empty &= not rings
        return done

    async def _silence(self, heard: Sequence[Heard]) -> float | None:
        """How long ago everything said had been read, in seconds: only alarms set for before then
        go off (rule 8). `AGES` where nobody can tell: what waits for nobody's word goes on even
        so. None: no alarm is looked at now, as mostly under load."""
        now = time.monotonic()
        if not self._alarms or (heard and now - self._looked_at < LOOK_EVERY):
            return None
        self._looked_at = now
        age = None if now < self._deaf_until else await self._conversation.heard_until()
        return AGES if age is None else age

    async def _read_pauses(self, sql: Sql, heard: Sequence[Heard]) -> None:
        """Now and then, and before anybody is denied: another writer may have ended the pause and
        rung for its jobs, which would not be rung for again soon."""
        now = time.monotonic()
        denied = any(isinstance(h.said, Claim) and holds(self._paused, h.said) for h in heard)
        if denied or now - self._pauses_at >= PAUSES_EVERY:
            self._budgets = await known_budgets(sql)
            self._paused, self._pauses_at = await paused(sql), now

    async def _singly(self, heard: Sequence[Heard]) -> Done:
        """Find the part that breaks a batch (rule 11). What handlers did in it is undone, so
        those of the other parts run again."""
        total = Done(more=True)
        for each in heard:  # first: alarms judge only what was not heard
            total.add(await self._alone([each], ""))
        if not total.given_back:
            for id in await self._waiting():
                total.add(await self._alone([], id))
        return total

    async def _alone(self, group: Sequence[Heard], only: str) -> Done:
        """One part in a transaction of its own, at last without its handlers; what fails even so
        is set aside."""
        try:
            return await self._commit(group, only=only)
        except Exception as error:
            if passing(error):  # not this part's fault: it stays with its sender
                raise
            log.warning("Tried again without handlers", id=only, error=briefly(error))
        try:
            return await self._commit(group, calls_handlers=False, only=only)
        except Exception as error:
            if passing(error):
                raise
            log.error("Poison", id=only, error=str(error)[:500])
            now = self._clock.now()
            with hold_limit(None):
                async with in_transaction("default") as tx:
                    for heard in group:
                        await keep_poison(Sql(tx), heard, error, now)
                    if only:
                        await give_up(Sql(tx), only, error, now)
            denied = Denied("poison")
            return Done([(h, denied if isinstance(h.said, Claim) else None) for h in group])

    async def _waiting(self) -> list[str]:
        """The inbox rows and due jobs of this turn, by id."""
        sql = Sql(get_connection("default"))
        letters = [letter.id for letter in await received(sql, MOST)]
        now, rooms = self._clock.now(), self._tools.rooms(self._paused)
        return letters + await due_jobs(sql, now, now, rooms, self._paused, MOST)

    async def _after(self, done: Done) -> None:
        for heard, answer in done.answers:
            heard.reply(answer)
        if done.given_back:
            self._conversation.give_back(done.given_back)
        if done.paused_changed:
            self._pauses_at = 0.0
        await self._broker.send(done.messages, done.chores)
        if done.owed:
            self.owed.bell.set()
        if done.changed:
            self._told(done.changed)
        await self._conversation.flush()
        if done.new_jobs:
            self.ring()

    async def _rest(self) -> None:
        """Until somebody rings or the next alarm is due."""
        began = time.time()  # which goes on while the machine sleeps
        self._idle.set()
        wait = min(await self._until_next(), self._longest_rest)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._conversation.bell.wait()
        self._notice_standstill(time.time() - began - wait)

    async def _until_next(self) -> float:
        """Seconds until something is due that we may act on."""
        if not self._alarms:
            return REST
        rooms = self._tools.rooms(self._paused)
        sql = Sql(get_connection("default"))
        open_queues = [q for q, room in rooms.items() if room > 0]
        due = instant(await next_alarm(sql, open_queues, self._paused))
        wait = REST if due is None else (due - self._clock.now()).total_seconds()
        deaf = time.monotonic() < self._deaf_until
        wait = max(wait, DEAF_REST if deaf else self._least_rest)
        return min(wait, 0.2) if any(room <= 0 for room in rooms.values()) else wait

    def _notice_standstill(self, seconds: float) -> None:
        """After a standstill of this process, silence is nobody's fault but ours: alarms wait
        until the workers had time to speak (rule 8)."""
        if seconds > GAP:
            log.warning("This process stood still", seconds=round(seconds, 1))
            self._deaf_until = time.monotonic() + CATCH_UP
