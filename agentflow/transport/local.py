"""The transport inside one process: asyncio queues to the writer and, by Taskiq, to the worker."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson
import structlog
from taskiq import AckableMessage, AsyncBroker, BrokerMessage

from agentflow.core.events import Envelope
from agentflow.transport.conversation import (
    Beat,
    Chore,
    Claim,
    Denied,
    Granted,
    Heard,
    Message,
)
from agentflow.types import JobId

log = structlog.get_logger(__name__)

CHORE = "agentflow.chore"
"""The Taskiq task that all chores go through."""

MAX_UNCLAIMED = 1000
"""How many messages of one provider wait in the broker; further jobs wait in the database."""


Depth: TypeAlias = Callable[[str, int], int]
"""How many messages of a provider may wait in the broker; the second argument at most."""


def unlimited(_queue: str, most: int) -> int:
    return most


@dataclass(slots=True, eq=False)
class LocalHeard:
    """One thing said to the writer, and where its answer goes."""

    said: Claim | Envelope | Beat
    answer: asyncio.Future[Granted | Denied | None] | None = None

    def reply(self, value: Granted | Denied | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(value)


class LocalConversation:
    """Both sides of the conversation in one event loop."""

    def __init__(self) -> None:
        self.bell = asyncio.Event()
        self._heard: list[Heard] = []

    async def claim(self, claim: Claim) -> Granted | Denied:
        answer = await self._ask(claim)
        assert answer is not None, "a claim is granted or denied"
        return answer

    async def report(self, envelope: Envelope) -> None:
        await self._ask(envelope)

    def beat(self, worker: str, attempts: Sequence[tuple[JobId, int]]) -> None:
        self._heard.append(LocalHeard(Beat(worker, attempts)))
        self.bell.set()

    def take(self, most: int) -> list[Heard]:
        """What was said, in order; the writer's side."""
        taken, self._heard = self._heard[:most], self._heard[most:]
        return taken

    def give_back(self, heard: Sequence[Heard]) -> None:
        """To be taken again, before all else."""
        self._heard[:0] = heard
        self.bell.set()

    @property
    def empty(self) -> bool:
        return not self._heard

    async def flush(self) -> None:
        """Replies were taken where they were given."""

    async def heard_until(self) -> float | None:
        return 0.0

    async def _ask(self, said: Claim | Envelope) -> Granted | Denied | None:
        heard = LocalHeard(said, asyncio.get_running_loop().create_future())
        self._heard.append(heard)
        self.bell.set()
        assert heard.answer is not None
        return await heard.answer


class QueueBroker(AsyncBroker):
    """A Taskiq broker in memory: a queue for each provider, first come first served, and the
    providers in turn.

    A message with the key of one still unclaimed is dropped: it would only be denied. `free` is how
    many more messages of a provider have room, given how many of each were handed out and are not
    settled; `stir` tells that there may be more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._queues: dict[str, deque[tuple[str, bytes]]] = {}
        self._unclaimed: dict[str, str] = {}
        self._handed: Counter[str] = Counter()
        self._stirred = asyncio.Event()
        self.free: Callable[[str, Mapping[str, int]], int] = lambda _queue, _handed: 1

    def length(self, queue: str) -> int:
        """How many messages of a provider nobody has settled."""
        return len(self._queues.get(queue, ())) + self._handed[queue]

    def settle(self, key: str) -> None:
        """The message of this key was answered; another with the same key is welcome."""
        queue = self._unclaimed.pop(key, None)
        if queue is not None:
            self._handed[queue] -= 1
            self.stir()

    def stir(self) -> None:
        self._stirred.set()

    async def kick(self, message: BrokerMessage) -> None:
        if message.task_id not in self._unclaimed:
            queue = message.task_name.partition(".")[0]
            self._unclaimed[message.task_id] = queue
            self._queues.setdefault(queue, deque()).append((message.task_id, message.message))
            self.stir()

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        while True:
            self._stirred.clear()
            queue = next((q for q in self._queues if self.free(q, self._handed) > 0), None)
            if queue is None:
                await self._stirred.wait()
                continue
            waiting = self._queues.pop(queue)
            key, data = waiting.popleft()
            if waiting:
                self._queues[queue] = waiting  # the others' turn comes first
            self._handed[queue] += 1
            yield AckableMessage(data=data, ack=_Ack(self, key))


@dataclass(frozen=True, slots=True)
class _Ack:
    broker: QueueBroker
    key: str

    def __call__(self) -> None:
        self.broker.settle(self.key)


@dataclass(slots=True)
class LocalBroker:
    """The calls' queue and the chores' queue."""

    calls: QueueBroker = field(default_factory=QueueBroker)
    chores: QueueBroker = field(default_factory=QueueBroker)
    depth: Depth = unlimited

    def room(self, queue: str) -> int:
        return self.depth(queue, MAX_UNCLAIMED) - self.calls.length(queue)

    def length(self, queue: str) -> int:
        return self.calls.length(queue)

    def stir(self) -> None:
        """The worker may have room for more."""
        self.calls.stir()

    async def send(self, messages: Sequence[Message], chores: Sequence[Chore]) -> None:
        for message in messages:
            await _kick(self.calls, message.task, f"{message.job_id}/{message.attempt}", message)
        for chore in chores:
            key = f"{chore.kind}/{chore.job_id}/{chore.attempt}"
            await _kick(self.chores, CHORE, key, chore)


async def _kick(broker: QueueBroker, task: str, key: str, message: Any) -> None:
    fields = orjson.loads(orjson.dumps(message))
    decorated = broker.find_task(task)
    if decorated is None:  # an open job of a plugin that is gone; its alarm rings again
        log.warning("No plugin has this task", task=task)
        return
    await decorated.kicker().with_task_id(key).kiq(fields)
