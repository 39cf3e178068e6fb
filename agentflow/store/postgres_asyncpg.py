"""Tortoise's asyncpg engine, made safe for the writer. Its name is this module's.

It adds what `agentflow.store.sqlite` has (callbacks after the commit, `current_transaction()`),
gives the connection back whatever happens to the task, and turns every failure of the driver into
one of Tortoise's exceptions. Tortoise picks its schema editor by the word asyncpg in this module's
name.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, cast

import asyncpg
import structlog
from tortoise.backends.asyncpg.client import AsyncpgDBClient, TransactionWrapper
from tortoise.backends.base.client import TransactionContext
from tortoise.exceptions import (
    DBConnectionError,
    IntegrityError,
    OperationalError,
    TransactionManagementError,
)

from agentflow.errors import UsageError
from agentflow.store.transactions import CONTROL, CONTROLLED, ENDED, entered, limit, settled

__all__ = ["PostgresClient", "Transaction", "client_class"]

log = structlog.get_logger(__name__)

END_WITHIN = 5.0
"""Seconds for a ROLLBACK; a connection that does not answer by then is thrown away."""

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InternalClientError,  # its server ended the connection in mid-air
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,
)
"""What says nothing about the statement: the same one may succeed the next time."""

_LOST_WORDS = re.compile("is closed|was closed|released back to the pool")
"""How asyncpg says that a connection is gone, by the same class as it says that it was misused."""

_LOST = "was ended by a statement in it"

_FAILED = (
    "A statement of this transaction failed, and PostgreSQL keeps nothing of such a transaction,"
    " whatever the code makes of the exception. Nest another `async with in_transaction()` for a"
    " part that may fail."
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
    """What `async with in_transaction() as tx` gives: a transaction, or a savepoint in one.

    Leaving the block ends it, by COMMIT or, after any exception, by ROLLBACK; nothing else can.
    """

    def __init__(self, parent: PostgresClient | Transaction) -> None:
        super().__init__(parent)
        self.root: PostgresClient = parent.root if isinstance(parent, Transaction) else parent
        self._outer = parent if isinstance(parent, Transaction) else None
        self._top: Transaction = self._outer._top if self._outer else self
        self._lock = self._outer._lock if self._outer else self._lock
        self._saved = 0
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

    def expire(self, seconds: float) -> None:
        """The server rolls back what a closed connection leaves behind."""
        log.warning("Transaction held too long, rolled back", hold_limit=seconds)
        self._end(f"was held longer than {seconds} s and has been rolled back")
        self._drop()

    def _in_transaction(self) -> TransactionContext:
        return cast("TransactionContext", _savepoint(self))

    async def _refuse_control(self) -> NoReturn:
        raise UsageError(CONTROLLED)

    begin = commit = rollback = _refuse_control
    savepoint = savepoint_rollback = release_savepoint = _refuse_control

    async def _translate_exceptions(self, func: Any, query: str, *args: Any, **kwargs: Any) -> Any:
        if self.over():
            raise UsageError(self.over())
        if CONTROL.match(query):
            raise UsageError(CONTROLLED)
        try:
            answer = await _translated(func, self, query, *args, **kwargs)
        except (OperationalError, DBConnectionError) as error:
            if self.over():  # held too long meanwhile
                raise UsageError(self.over()) from error
            raise
        if not self._is_open():  # of what follows, each would be stored alone
            self._top._end(_LOST)
            raise UsageError(self.over())
        return answer

    def _is_open(self) -> bool:
        """Raises `DBConnectionError` if the server has ended the session."""
        try:
            return bool(self._connection.is_in_transaction())
        except asyncpg.InterfaceError as error:
            raise DBConnectionError(error) from error

    def _drop(self) -> None:
        """Close the connection, if the server did not."""
        with suppress(asyncpg.InterfaceError):
            self._connection.terminate()

    async def _execute(self, statement: str) -> str:
        """Returns what PostgreSQL says it did."""
        async with self._lock:
            done: str = await _translated(self._connection.execute, statement)
            return done

    def _end(self, why: str) -> None:
        self._ended = ENDED.format(why=why)

    async def _commit(self) -> None:
        """Commit, or raise and leave nothing; a cancellation waits until it is known which."""
        if self.over():
            raise UsageError(self.over())
        self._end("has been committed")
        outcome = asyncio.ensure_future(self._execute("COMMIT"))
        outcome.add_done_callback(self._announce)
        if await settled(outcome) != "COMMIT":
            raise TransactionManagementError(_FAILED)

    def _announce(self, outcome: asyncio.Future[str]) -> None:
        if outcome.cancelled() or outcome.exception() or outcome.result() != "COMMIT":
            return
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                log.exception("Callback after a commit failed", callback=repr(callback))

    async def _undo(self, statement: str, why: str) -> None:
        """Roll back; a connection that cannot is closed, which has the server roll back."""
        if self.over():
            return
        self._end(why)
        try:
            async with asyncio.timeout(END_WITHIN):
                await self._execute(statement)
        except BaseException as error:
            self._top._end(_LOST)
            self._drop()
            if not isinstance(error, Exception):
                raise


@asynccontextmanager
async def _transaction(root: PostgresClient, seconds: float | None) -> AsyncIterator[Transaction]:
    pool = await _translated(root.opened)
    connection = await _translated(pool.acquire)
    try:
        tx = Transaction(root)
        tx._connection = connection
        timer = None
        try:
            await tx._execute("BEGIN")
            if seconds:
                timer = asyncio.get_running_loop().call_later(seconds, tx.expire, seconds)
            with entered(tx):
                yield tx
        except BaseException:
            await tx._undo("ROLLBACK", "has been rolled back")
            raise
        finally:
            if timer is not None:
                timer.cancel()
        await tx._commit()
    finally:
        await asyncio.shield(pool.release(connection))


@asynccontextmanager
async def _savepoint(parent: Transaction) -> AsyncIterator[Transaction]:
    if parent.over():
        raise UsageError(parent.over())
    tx = Transaction(parent)
    tx._top._saved += 1
    name = f"agentflow_{tx._top._saved}"
    await tx._execute(f"SAVEPOINT {name}")
    try:
        with entered(tx):
            yield tx
        if tx.over():
            raise UsageError(tx.over())
        await tx._execute(f"RELEASE {name}")
    except BaseException:
        undone = "has been rolled back to its savepoint"
        await tx._undo(f"ROLLBACK TO {name}; RELEASE {name}", undone)
        raise
    tx._end("has been released into its transaction")
    parent._callbacks += tx._callbacks


async def _translated(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Whatever the driver raises, as Tortoise would say it; a cancellation stays one."""
    try:
        return await func(*args, **kwargs)
    except asyncpg.IntegrityConstraintViolationError as error:
        raise IntegrityError(error) from error
    except _AWAY as error:
        raise DBConnectionError(error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        lost = isinstance(error, asyncpg.InterfaceError) and _LOST_WORDS.search(str(error))
        raise (DBConnectionError if lost else OperationalError)(error) from error


async def _keep(connection: Any) -> None:
    """In place of asyncpg's reset of a session."""
