"""Tortoise's asyncpg engine, made safe for the writer. Its name is this module's.

It adds what `agentflow.store.sqlite` has (callbacks after the commit, `current_transaction()`),
gives the connection back whatever happens to the task, and turns every failure of the driver into
one of Tortoise's exceptions. Tortoise picks its schema editor by the word asyncpg in this module's
name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, cast

import asyncpg
import structlog
from tortoise.backends.asyncpg.client import AsyncpgDBClient, TransactionWrapper
from tortoise.backends.base.client import TransactionContext
from tortoise.exceptions import DBConnectionError, IntegrityError, OperationalError

from agentflow.errors import UsageError
from agentflow.store.transactions import entered, limit

__all__ = ["PostgresClient", "Transaction", "client_class"]

log = structlog.get_logger(__name__)

_CONTROLLED = (
    "The block `async with in_transaction()` begins and ends a transaction. Leave it to commit;"
    " raise in it to roll back; nest another one for a part that may fail."
)

END_WITHIN = 5.0
"""Seconds for a ROLLBACK; a connection that does not answer by then is thrown away."""

_ENDED = (
    "This transaction {why}. Open a new one with `async with in_transaction()`; start a task that"
    " is to outlive a transaction from `tx.after_commit(...)`, not inside it."
)


class PostgresClient(AsyncpgDBClient):
    """The pool. `hold_limit` is kept by the server (`idle_in_transaction_session_timeout`)."""

    def __init__(self, *, hold_limit: float | None = None, **credentials: Any) -> None:
        super().__init__(**credentials)
        self.hold_limit = hold_limit

    async def create_pool(self, **kwargs: Any) -> asyncpg.Pool:
        # Nothing here changes the state of a session, so that resetting it is a lost round trip.
        return await asyncpg.create_pool(None, reset=_keep, **kwargs)

    async def opened(self) -> asyncpg.Pool:
        """The pool, made on first use."""
        if self._pool is None:
            async with self._pool_init_lock:
                if self._pool is None:
                    await self.create_connection(with_db=True)
        assert self._pool is not None, "create_connection makes the pool"
        return self._pool

    def _in_transaction(self) -> TransactionContext:
        return cast("TransactionContext", _transaction(self, limit.get(self.hold_limit)))

    async def _translate_exceptions(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return await _translated(func, self, *args, **kwargs)


client_class = PostgresClient


class Transaction(TransactionWrapper):
    """What `async with in_transaction() as tx` gives: a transaction, or a savepoint in one."""

    def __init__(self, parent: PostgresClient | Transaction) -> None:
        super().__init__(parent)
        self.root: PostgresClient = parent.root if isinstance(parent, Transaction) else parent
        self._outer = parent if isinstance(parent, Transaction) else None
        self._ended = ""
        self._callbacks: list[Callable[[], object]] = []

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the outermost transaction is committed, and only then.

        It is forgotten if this savepoint is rolled back. What it raises is logged, for the commit
        stands.
        """
        if self.over():
            raise UsageError(self.over())
        self._callbacks.append(callback)

    def over(self) -> str:
        return self._ended or (self._outer.over() if self._outer else "")

    def _in_transaction(self) -> TransactionContext:
        return cast("TransactionContext", _savepoint(self))

    async def _refuse_control(self) -> NoReturn:
        raise UsageError(_CONTROLLED)

    begin = commit = rollback = _refuse_control
    savepoint = savepoint_rollback = release_savepoint = _refuse_control

    async def open(self) -> None:
        self.transaction = self._connection.transaction()
        await _translated(self.transaction.start)

    async def close_by_commit(self) -> None:
        assert self.transaction is not None, "it was opened"
        await _translated(self.transaction.commit)

    def expire(self, seconds: float) -> None:
        """The server rolls back what a closed connection leaves behind."""
        log.warning("Transaction held too long, rolled back", hold_limit=seconds)
        self._end(f"was held longer than {seconds} s and has been rolled back")
        self._connection.terminate()

    async def _translate_exceptions(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        if self.over():
            raise UsageError(self.over())
        return await _translated(func, self, *args, **kwargs)

    def _end(self, why: str) -> None:
        self._ended = _ENDED.format(why=why)

    async def _undo(self, why: str) -> None:
        """Roll back; a connection that cannot is closed, which has the server roll back."""
        self._end(why)
        assert self.transaction is not None, "it was opened"
        try:
            async with asyncio.timeout(END_WITHIN):
                await self.transaction.rollback()
        except BaseException as error:
            self._connection.terminate()
            if not isinstance(error, Exception):
                raise

    def _announce(self) -> None:
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                log.exception("Callback after a commit failed", callback=repr(callback))


@asynccontextmanager
async def _transaction(root: PostgresClient, seconds: float | None) -> AsyncIterator[Transaction]:
    pool = await _translated(root.opened)
    connection = await _translated(pool.acquire)
    try:
        tx = Transaction(root)
        tx._connection = connection
        await tx.open()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(float(seconds), tx.expire, seconds) if seconds else None
        try:
            with entered(tx):
                yield tx
        except BaseException:
            if not tx.over():
                await tx._undo("has been rolled back")
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if tx.over():
            raise UsageError(tx.over())
        tx._end("has been committed")
        await tx.close_by_commit()
    finally:
        await asyncio.shield(pool.release(connection))
    tx._announce()


@asynccontextmanager
async def _savepoint(parent: Transaction) -> AsyncIterator[Transaction]:
    tx = Transaction(parent)
    await tx.open()
    try:
        with entered(tx):
            yield tx
    except BaseException:
        if not tx.over():
            await tx._undo("has been rolled back to its savepoint")
        raise
    if tx.over():
        raise UsageError(tx.over())
    tx._end("has been released into its transaction")
    await tx.close_by_commit()
    parent._callbacks += tx._callbacks


async def _translated(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Whatever the driver raises, as Tortoise would say it; a cancellation stays one."""
    try:
        return await func(*args, **kwargs)
    except asyncpg.IntegrityConstraintViolationError as error:
        raise IntegrityError(error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise OperationalError(error) from error
    except (OSError, TimeoutError, asyncpg.InternalClientError) as error:
        raise DBConnectionError(error) from error  # the last: its server ended it in mid-air


async def _keep(connection: Any) -> None:
    """In place of asyncpg's reset of a session."""
