"""The transport inside one process: asyncio queues to the writer and, by Taskiq, to the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

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
"""How many messages wait in memory; further jobs wait in the database."""


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
    """A Taskiq broker on an asyncio queue: bounded, first come first served.

    A message with the key of one still unclaimed is dropped: it would only be denied.
    """

    def __init__(self) -> None:
        super().__init__()
        self._queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._unclaimed: set[str] = set()

    def room(self) -> int:
        return MAX_UNCLAIMED - self._queue.qsize()

    def settle(self, key: str) -> None:
        """The message of this key was answered; another with the same key is welcome."""
        self._unclaimed.discard(key)

    async def kick(self, message: BrokerMessage) -> None:
        if message.task_id not in self._unclaimed:
            self._unclaimed.add(message.task_id)
            self._queue.put_nowait((message.task_id, message.message))

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        while True:
            key, data = await self._queue.get()
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

    def room(self, queue: str) -> int:  # noqa: ARG002 - one queue for all providers
        return self.calls.room()

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
