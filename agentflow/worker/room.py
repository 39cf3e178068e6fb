"""The waiting room of a worker: who came in waits for a hand that is free, and for a permit.

A message that waits for a permit keeps no hand from the others. Of one provider only so many wait
here while a limit binds; the others stay with the broker, for this worker or another.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

import structlog

from agentflow.core.limits import ROOM, Demand, Option
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.conversation import Message
from agentflow.transport.permits import ASK_EVERY, Ledger, Refused, turned
from agentflow.types import new_id
from agentflow.worker.line import Line, Permit, Waiter

log = structlog.get_logger(__name__)

Handed: TypeAlias = Mapping[str, int]
"""How many messages of each provider the broker has handed out that are not taken up yet."""


class Room:
    """`hands` is how many calls the worker makes at once. `changed` is called when there may be
    room for more messages."""

    def __init__(self, ledger: Ledger, hands: int, metrics: Metrics) -> None:
        self._ledger, self._metrics = ledger, metrics
        self._hands = asyncio.Semaphore(hands)
        self._free, self._closed = hands, False
        self._lines: dict[str, Line] = {}
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._held: Counter[str] = Counter()
        self.changed: Callable[[], None] = lambda: None
        ledger.freed = self.ring

    @asynccontextmanager
    async def place(self, message: Message, demand: Demand) -> AsyncIterator[Permit | None]:
        """A permit for the call, and a hand for as long as the block lasts. None: the worker stops
        and the message is somebody else's."""
        permit = await self._wait(message, demand)
        try:
            yield permit
        finally:
            if permit is not None:
                self._leave(permit)

    def begin(self, permit: Permit) -> None:
        """The call is made now."""
        permit.begun = True
        self._ledger.started(permit.id, permit.option)

    def give_back(self, permit: Permit) -> None:
        """The call has ended, or will not be made."""
        if permit.held:
            permit.held = False
            self._held.subtract(b.label for b in permit.option.bounds)
            self._ledger.give_back(permit.id, permit.option, used=permit.begun)

    def pause(self, permit: Permit, seconds: float) -> None:
        """The provider asks for a rest, of everybody who calls as this one did."""
        name = permit.option.pauses[-1]
        self._metrics.pauses[(self._metrics.provider(name.partition("/")[0]),)].inc()
        self._ledger.pause(name, seconds)

    def free(self, provider: str, handed: Handed) -> int:
        """How many more messages of this provider may be read."""
        bound = {line.demand.provider for line in self._lines.values() if line.binds}
        if provider in bound:
            return ROOM - handed.get(provider, 0)
        return self._free - sum(n for other, n in handed.items() if other not in bound)

    def close(self) -> None:
        """Nobody in here is served any more."""
        self._closed = True
        for line in self._lines.values():
            while (waiter := line.next()) is not None:
                waiter.permit.set_result(None)
        for serving in self._serving.values():
            serving.cancel()

    def figures(self) -> tuple[Counter[str], Counter[str]]:
        """By limit: how many messages wait here because something binds, and how many permits are
        held."""
        waiting: Counter[str] = Counter()
        for line in self._lines.values():
            if line.binds:
                labels = {b.label for o in line.demand.options for b in o.bounds}
                waiting.update(dict.fromkeys(labels or {line.demand.provider}, len(line)))
        return waiting, +self._held

    # -- in line ---------------------------------------------------------------------------------

    async def _wait(self, message: Message, demand: Demand) -> Permit | None:
        if self._closed:
            return None
        began = time.perf_counter()
        waiter = self._line(demand).add(message)
        self._serve(demand)
        try:
            permit = await waiter.permit
        except asyncio.CancelledError:
            given = waiter.permit
            if given.done() and not given.cancelled() and (late := given.result()) is not None:
                self._leave(late)
            raise
        waited = self._metrics.permit_seconds[(self._metrics.provider(demand.provider),)]
        waited.observe(time.perf_counter() - began)
        return permit

    def _line(self, demand: Demand) -> Line:
        if demand.name not in self._lines:
            self._lines[demand.name] = Line(demand.name, demand)
        return self._lines[demand.name]

    def _serve(self, demand: Demand) -> None:
        if demand.name not in self._serving:
            serving = asyncio.create_task(self._serve_line(demand.name), name="agentflow-line")
            self._serving[demand.name] = serving

    async def _serve_line(self, name: str) -> None:
        """One after the other, until nobody is left."""
        line = self._lines[name]
        try:
            while line:
                await self._hands.acquire()
                taken: Permit | Refused | None = None
                try:
                    taken = await self._ask(line)
                finally:
                    if not isinstance(taken, Permit):
                        self._hands.release()
                if isinstance(taken, Permit):
                    self._hand_out(line, taken)
                    continue
                line.binds = True
                self.changed()
                await line.rest(min(taken.wait, ASK_EVERY))
        finally:
            del self._serving[name], self._lines[name]
            self.changed()

    async def _ask(self, line: Line) -> Permit | Refused:
        id = new_id("permit")
        line.bell.clear()
        try:
            taken = await self._taken(line, id)
        except Exception as error:  # a bug, or a Redis that answers nonsense: ask again
            log.error("A permit cannot be asked for", line=line.name, error=str(error)[:200])
            taken = Refused(ASK_EVERY)
        return taken if isinstance(taken, Refused) else Permit(id, taken)

    async def _taken(self, line: Line, id: str) -> Option | Refused:
        if line.demand.limited:
            return await self._ledger.take(line.name, id, line.demand)
        return self._unlimited(line.demand)

    def _unlimited(self, demand: Demand) -> Option | Refused:
        """Nobody need be asked, but for who is to rest."""
        waits = []
        for option in turned(demand.options):
            wait = max(map(self._ledger.paused, option.pauses))
            if not wait:
                return option
            waits.append(wait)
        return Refused(min(waits))

    def _hand_out(self, line: Line, permit: Permit) -> None:
        line.binds = False
        self._free -= 1
        self._held.update(b.label for b in permit.option.bounds)
        waiter: Waiter | None = line.next()
        if waiter is None:
            self._leave(permit)
        else:
            waiter.permit.set_result(permit)

    def _leave(self, permit: Permit) -> None:
        self.give_back(permit)
        self._free += 1
        self._hands.release()
        self.changed()

    def ring(self, line: str | None) -> None:
        """This line, or every line, should ask again."""
        for name, each in self._lines.items():
            if line in (None, name):
                each.bell.set()
