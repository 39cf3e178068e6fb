"""What both engines know of transactions: which one a task is in, and how long it may last."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol, TypeVar

from tortoise.connection import get_connections
from tortoise.exceptions import DBConnectionError

T = TypeVar("T")

CONTROL = re.compile(  # comments may stand before it
    r"(?:\s|;|--[^\n]*\n|/\*.*?\*/)*"
    r"(BEGIN|START|COMMIT|END|ABORT|ROLLBACK|SAVEPOINT|RELEASE)\b",
    re.I | re.S,
)

ENDED = (
    "This transaction {why}. Open a new one with `async with in_transaction()`; start a task that"
    " is to outlive a transaction from `tx.after_commit(...)`, not inside it."
)

CONTROLLED = (
    "The block `async with in_transaction()` begins and ends a transaction. Leave it to commit;"
    " raise in it to roll back; nest another one for a part that may fail."
)


PASSING = ("08", "25006", "40", "53", "55", "57", "58")
"""Beginnings of the SQLSTATEs that say something of the server and its load, not of a statement."""


def sqlstate(error: BaseException) -> str:
    """What PostgreSQL called it; empty if it was not PostgreSQL who said no."""
    return str(getattr(error.__cause__, "sqlstate", None) or "")


def passing(error: BaseException) -> bool:
    """Whether the same statements may succeed later: the database is away, full or locked."""
    return isinstance(error, DBConnectionError) or sqlstate(error).startswith(PASSING)


def crossed(error: BaseException) -> bool:
    """Whether two transactions stood in each other's way."""
    return sqlstate(error).startswith(("40", "55P03"))


class Held(Protocol):
    """An open transaction or savepoint; `over` says why it is not open any more."""

    connection_name: str

    @property
    def root(self) -> Any:
        """The client it was opened on."""

    def over(self) -> str: ...


held: ContextVar[tuple[Held, ...]] = ContextVar("agentflow_transactions", default=())
limit: ContextVar[float | None] = ContextVar("agentflow_hold_limit")


def current_transaction() -> Held | None:
    """The innermost open transaction (or savepoint) this task runs in, else None."""
    stack = held.get()
    return stack[-1] if stack and not stack[-1].over() else None


def detached() -> Context:
    """A copy of this task's context without its transactions, open or ended.

    For a task that serves others too, whoever happens to start it:
    `asyncio.create_task(serve(), context=detached())`.
    """
    context = copy_context()
    for tx in held.get():
        context.run(get_connections().set, tx.connection_name, tx.root)
    context.run(held.set, ())
    return context


@contextmanager
def hold_limit(seconds: float | None) -> Iterator[None]:
    """Replace the credential `hold_limit` for each `in_transaction()` called in the block.

    For code that bounds its own work, as the writer does: `with hold_limit(None): async with
    in_transaction() as tx: ...`. Savepoints have no limit of their own.
    """
    token = limit.set(seconds)
    try:
        yield
    finally:
        limit.reset(token)


async def settled(future: asyncio.Future[T]) -> T:
    """Wait for `future` through every cancellation, then let the cancellation go on."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    return future.result()


@contextmanager
def entered(tx: Any) -> Iterator[None]:
    """Make `tx` what this task's queries and its `in_transaction()` find."""
    connections = get_connections()
    token = connections.set(tx.connection_name, tx)
    before = held.set((*held.get(), tx))
    try:
        yield
    finally:
        held.reset(before)
        connections.reset(token)
