"""Messages that wait for the same thing, and whose turn it is."""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count

from agentflow.core.limits import Demand, Option
from agentflow.transport.conversation import Message

_ORDER = count()


@dataclass(slots=True, eq=False)
class Waiter:
    """One message; `permit` is set when its turn has come, to None when the worker stops."""

    message: Message
    permit: asyncio.Future[Permit | None]
    order: tuple[int, int]

    def __lt__(self, other: Waiter) -> bool:
        return self.order < other.order


@dataclass(slots=True, eq=False)
class Permit:
    """One call may be made with the key of `option`. `begun` says that it was."""

    id: str
    option: Option
    begun: bool = False
    held: bool = True


@dataclass(slots=True, eq=False)
class Line:
    """Tenants take turns; those of one tenant go by priority and then in order.

    `binds` says that the last asking was refused: a limit or a pause holds the line up.
    """

    name: str
    demand: Demand
    binds: bool = False
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    _tenants: OrderedDict[str, list[Waiter]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def add(self, message: Message) -> Waiter:
        future: asyncio.Future[Permit | None] = asyncio.get_running_loop().create_future()
        waiter = Waiter(message, future, (-message.priority, next(_ORDER)))
        heapq.heappush(self._tenants.setdefault(message.tenant, []), waiter)
        return waiter

    def next(self) -> Waiter | None:
        """Whose turn it is, who then is in the line no more; None if all have gone."""
        while self._tenants:
            tenant, waiting = self._tenants.popitem(last=False)
            waiter = heapq.heappop(waiting)
            if waiting:
                self._tenants[tenant] = waiting  # at the end
            if not waiter.permit.done():
                return waiter
        return None

    async def rest(self, seconds: float) -> None:
        """Until the bell rings, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self.bell.wait()
        except TimeoutError:
            pass
