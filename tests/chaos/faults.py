"""What can go wrong with whom, and the storm that draws from it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from support.proxy import Cut, Proxy
from support.servers import RedisServer

from agentflow.transport.redis_link import CHORES, EVENTS, calls
from chaos.cluster import Cluster
from chaos.role import Role

Seconds: TypeAlias = tuple[float, float]
"""The least and the most."""

Step: TypeAlias = Callable[[], Any]

AT_ONCE = 4
HOUR = 3600.0


@dataclass
class Struck:
    """One fault that happened; instants are those of `time.time()`."""

    kind: str
    target: str
    began: float
    healed: float = 0.0

    def __str__(self) -> str:
        lasted = f" for {self.healed - self.began:.1f} s" if self.healed else ""
        return f"{self.kind}: {self.target}{lasted}"


@dataclass(frozen=True)
class Fault:
    """`begin` and `heal` may block or be coroutines; `seconds` lie between them."""

    kind: str
    targets: Sequence[str]
    begin: Callable[[str], Any]
    heal: Callable[[str], Any] = lambda _: None
    seconds: Seconds = (0.0, 0.0)


@dataclass
class Storm:
    """Draws every kind of fault once, in any order, then again, until `faults` have struck.

    Several at once, but never the same target twice, and one process of each role stays whole.
    `scale` shortens everything that lasts.
    """

    world: Cluster
    dice: random.Random
    scale: float = 1.0
    struck: list[Struck] = field(default_factory=list)
    _now: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def rage(self, faults: int, seconds: float) -> None:
        """`faults` of them, begun within about so many seconds; returns when all are healed."""
        deck: list[Fault] = []
        began = time.monotonic()
        for number in range(faults):
            due = began + (number + self.dice.random()) * seconds / faults
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            deck = deck or self._shuffled()
            fault, target = await self._fitting(deck)
            deck.remove(fault)
            self._now[target] = asyncio.create_task(self._strike(fault, target))
        await asyncio.gather(*self._now.values())

    def _shuffled(self) -> list[Fault]:
        deck = [*role_faults(self.world), *server_faults(self.world, self.dice)]
        self.dice.shuffle(deck)
        return deck

    async def _fitting(self, deck: Sequence[Fault]) -> tuple[Fault, str]:
        """The first of the deck that may strike now, waiting until there is one."""
        while True:
            if len(self._now) < AT_ONCE:
                for fault in deck:
                    targets = [target for target in fault.targets if self._may(target)]
                    if targets:
                        return fault, self.dice.choice(targets)
            await asyncio.sleep(0.05)

    def _may(self, target: str) -> bool:
        """Whether nobody needs this target now."""
        kind = target.partition("-")[0]
        whole = [r for r in self.world.named(kind) if r.name not in self._now]
        return target not in self._now and len(whole) != 1

    async def _strike(self, fault: Fault, target: str) -> None:
        struck = Struck(fault.kind, target, time.time())
        self.struck.append(struck)
        try:
            await _done(fault.begin, target)
            least, most = (s * self.scale for s in fault.seconds)
            await asyncio.sleep(self.dice.uniform(least, most))
            await _done(fault.heal, target)
        finally:
            struck.healed = time.time()
            print(f"{time.strftime('%H:%M:%S')} {struck}", flush=True)
            del self._now[target]


async def _done(step: Callable[[str], Any], target: str) -> None:
    done = step(target)
    if isinstance(done, Awaitable):
        await done


def role_faults(world: Cluster) -> Iterator[Fault]:
    roles = world.roles
    for kind in ("web", "writer", "worker"):
        names = [role.name for role in world.named(kind)]
        yield Fault(f"kill -9 {kind}", names, lambda name: roles[name].kill())
        yield Fault(
            f"{kind} stands still",
            names,
            lambda name: roles[name].freeze(),
            lambda name: roles[name].thaw(),
            (3, 20),
        )
    yield from _cuts("Redis", list(roles), lambda name: roles[name].redis, (5, 60))
    with_database = [name for name, role in roles.items() if role.postgres]
    yield from _cuts("PostgreSQL", with_database, lambda name: _postgres(roles[name]), (5, 30))
    yield Fault(
        "clock wrong by an hour",
        list(roles),
        lambda name: _set_clock(roles[name], HOUR if name.endswith("1") else -HOUR),
        lambda name: _set_clock(roles[name], 0.0),
        (10, 30),
    )


def _cuts(
    what: str, names: Sequence[str], link: Callable[[str], Proxy], seconds: Seconds
) -> Iterator[Fault]:
    modes: dict[str, Cut] = {"resets": "reset", "is silent": "blackhole"}
    for words, mode in modes.items():

        def cut(name: str, mode: Cut = mode) -> None:
            link(name).cut(mode)

        yield Fault(f"link to {what} {words}", names, cut, lambda name: link(name).heal(), seconds)


def _postgres(role: Role) -> Proxy:
    assert role.postgres is not None, "it has a database"
    return role.postgres


def _set_clock(role: Role, ahead: float) -> None:
    role.ahead = ahead
    role.kill()


def server_faults(world: Cluster, dice: random.Random) -> Iterator[Fault]:
    """Their steps block, so they are taken in a thread."""
    redis, postgres = world.redis, world.postgres
    streams = [EVENTS, CHORES, *(calls("replicate", level) for level in (1, 0, -1))]

    def one(kind: str, server: str, *steps: Any, seconds: Seconds = (0.0, 0.0)) -> Fault:
        begin, heal = (_threaded(step) for step in (*steps, lambda: None)[:2])
        return Fault(kind, [server], begin, heal, seconds)

    yield one("Redis killed, data kept", "redis", redis.kill, redis.start, seconds=(0.2, 5))
    yield one(
        "Redis killed, data lost", "redis", redis.kill, lambda: redis.start(keep=False),
        seconds=(0.2, 5),
    )  # fmt: skip
    yield one("Redis flushed", "redis", redis.flush)
    yield one("Redis stands still", "redis", redis.pause, redis.resume, seconds=(3, 10))
    yield one("a stream deleted", "redis", lambda: _delete(redis, dice.choice(streams)))
    yield one("PostgreSQL restarted", "postgres", postgres.restart)
    yield one("PostgreSQL killed", "postgres", postgres.kill, postgres.start, seconds=(0.2, 5))


def _threaded(step: Step) -> Callable[[str], Awaitable[Any]]:
    return lambda _: asyncio.to_thread(step)


def _delete(redis: RedisServer, key: str) -> None:
    with suppress(OSError):
        redis._ask(f"DEL {key}")
