"""The worker on its Taskiq brokers: one registration per task, two receivers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Protocol

import structlog
from pydantic import TypeAdapter, ValidationError
from taskiq import AckableMessage, AsyncBroker
from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver

from agentflow.transport.conversation import Chore, Message
from agentflow.transport.local import CHORE
from agentflow.worker.chores import do_chore
from agentflow.worker.watching import LoopWatch
from agentflow.worker.worker import Worker

log = structlog.get_logger(__name__)

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
_CHORE: TypeAdapter[Chore] = TypeAdapter(Chore)

CHORES_AT_ONCE = 32

UNBOUNDED = 1_000_000
"""The broker hands out no more calls than the waiting room has room for."""

_ACK: ContextVar[Callable[[], Any]] = ContextVar("_ACK", default=lambda: None)


class Brokers(Protocol):
    """What a worker receives from: calls of tasks, and chores."""

    @property
    def calls(self) -> AsyncBroker: ...

    @property
    def chores(self) -> AsyncBroker: ...


def register(brokers: Brokers, worker: Worker) -> None:
    """Each task under its own name on the calls' broker; all chores under one on the other."""

    async def chore(message: dict[str, Any]) -> None:
        await do_chore(worker, _CHORE.validate_python(message))

    for name in worker.catalogue.tasks:
        register_task(brokers, worker, name)
    brokers.chores.register_task(chore, task_name=CHORE)


def register_task(brokers: Brokers, worker: Worker, name: str) -> None:
    """One task; its function is an object of its own, since Taskiq writes it into its module by
    name."""

    async def call(message: dict[str, Any]) -> None:
        taken = _ACK.get()
        try:
            understood = _MESSAGE.validate_python(message)
        except ValidationError as error:  # of another version; the job's alarm rings again
            log.error("A message was not understood", error=str(error)[:200])
            taken()
            return
        with contextlib.suppress(asyncio.CancelledError):  # a stop, which Taskiq calls an error
            await worker.execute(understood, taken)

    call.__name__ = call.__qualname__ = name.replace(".", "_")
    brokers.calls.register_task(call, task_name=name)


class Serving:
    """Receives from both brokers until stopped."""

    def __init__(self, brokers: Brokers, worker: Worker) -> None:
        self._worker = worker
        self._finish = asyncio.Event()
        self._receivers = [
            _receiver(brokers.calls, UNBOUNDED, _Receiver, AcknowledgeType.MANUAL),
            _receiver(brokers.chores, CHORES_AT_ONCE, Receiver, AcknowledgeType.WHEN_RECEIVED),
        ]
        self.tasks: list[asyncio.Task[None]] = []
        self._watch = LoopWatch(worker.catalogue.tasks.values(), worker.held)

    def start(self) -> None:
        self.tasks = [
            asyncio.create_task(r.listen(self._finish), name="agentflow-receiver")
            for r in self._receivers
        ]
        self.tasks.append(asyncio.create_task(self._worker.beat(), name="agentflow-beat"))
        self._watch.start()

    async def stop(self, grace: float) -> None:
        """Take nothing new, give running calls `grace` seconds, hand back the rest."""
        self._finish.set()
        await self._worker.drain(grace)
        self._watch.stop()
        await cancel(self.tasks)


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel these and wait until they have ended. A library may swallow a cancellation."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


class _Receiver(Receiver):
    """Hands a message's acknowledgement on to its task, which knows when the message is its own."""

    async def callback(self, message: bytes | AckableMessage, raise_err: bool = False) -> None:
        if isinstance(message, AckableMessage):
            _ACK.set(message.ack)  # of this message's own task
        await super().callback(message, raise_err)


def _receiver(
    broker: AsyncBroker, at_once: int, kind: type[Receiver], ack_type: AcknowledgeType
) -> Receiver:
    return kind(
        broker,
        ack_type=ack_type,
        max_async_tasks=at_once,
        max_prefetch=0,
        run_startup=False,
        validate_params=False,
        wait_tasks_timeout=0.1,
    )
