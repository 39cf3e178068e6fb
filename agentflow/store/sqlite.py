"""A Tortoise engine for one process on one SQLite file: `{"engine": "agentflow.store.sqlite"}`.

Tortoise's own engine hangs and mixes transactions when tasks are cancelled; this one keeps its
client and replaces what runs a statement and what a transaction is. There is one alias with two
connections: the *writing* one, which one transaction or one write at a time holds (first come,
first served), and the *reading* one, which serves every SELECT outside a transaction.

Credentials: `file_path`; `hold_limit`, the seconds user code may keep a transaction open (None:
no limit); anything else is a pragma (WAL, `synchronous=FULL`, `foreign_keys=ON` unless told).
`:memory:` works, on one connection, so there reads wait for the open transaction.

What the rest relies on: each connection has one thread that takes its steps in order, and a step
once queued is run, whether or not the task that waits for it is cancelled. So a rollback that is
queued needs nobody to wait for it, and only COMMIT is shielded from cancellation.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from operator import methodcaller
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import aiosqlite
import structlog
from tortoise.backends.base.client import (
    BaseDBAsyncClient,
    ConnectionWrapper,
    TransactionalDBClient,
    TransactionContext,
)
from tortoise.backends.sqlite.client import SqliteClient
from tortoise.exceptions import IntegrityError, OperationalError, TransactionManagementError

from agentflow.errors import UsageError
from agentflow.store.transactions import (
    CONTROL,
    CONTROLLED,
    ENDED,
    current_transaction,
    detached,
    entered,
    held,
    hold_limit,
    limit,
    settled,
)

__all__ = [
    "EmbeddedClient",
    "Transaction",
    "client_class",
    "current_transaction",
    "detached",
    "hold_limit",
]

log = structlog.get_logger(__name__)

T = TypeVar("T")
Step: TypeAlias = Callable[[sqlite3.Connection], T]

_READ = re.compile(
    r"\s*(SELECT|VALUES|EXPLAIN|WITH(?!.*\b(INSERT|UPDATE|DELETE|REPLACE)\b))\b", re.I | re.S
)
_CROSSED = (
    "Another task has a savepoint open in this transaction, and savepoints only nest. Run the"
    " tasks one after another, or give each its own transaction outside this one."
)
_INSIDE = (
    "This task holds a transaction, and a write beside it would wait for it for ever. Write"
    " through the transaction: leave `using_db` out, or pass the `tx` that"
    " `async with in_transaction() as tx` gave."
)
_SCRIPT = (
    "In SQLite a script commits the transaction it runs in. Use `execute_query()` for each"
    " statement, or run the script outside the transaction."
)
_LEFT_OPEN = (
    "This left a transaction open. Write `async with in_transaction()` instead of BEGIN, and let"
    " a script end what it begins."
)
_LOST = (
    "SQLite no longer has this transaction: an `OR ROLLBACK`, an interrupt or a full disk ended"
    " it. Nothing of it is stored."
)


class _Statements(SqliteClient):
    """Tortoise's statements, each as one step (one hop) in the connection's thread."""

    async def _run(self, sql: str, step: Step[T]) -> T:
        raise NotImplementedError

    async def execute_insert(self, query: str, values: list[Any]) -> int:
        return await self._run(query, partial(_insert, query, values))

    async def execute_query(
        self, query: str, values: list[Any] | None = None
    ) -> tuple[int, Sequence[dict[str, Any]]]:
        return await self._run(query, partial(_query, query, values or []))

    async def execute_query_dict(
        self, query: str, values: list[Any] | None = None
    ) -> list[dict[str, Any]]:
        return [dict(row) for row in (await self.execute_query(query, values))[1]]

    def acquire_connection(self) -> ConnectionWrapper[Any]:
        raise UsageError(
            "The bare SQLite connection is not handed out: a statement on it would run in"
            " whatever transaction is open. Use `execute_query()` and its like."
        )


class EmbeddedClient(_Statements):
    """The alias itself: reads beside transactions, and writes that commit one by one."""

    def __init__(
        self, file_path: str, *, hold_limit: float | None = None, **credentials: Any
    ) -> None:
        super().__init__(file_path, **{"synchronous": "FULL", "busy_timeout": 5000, **credentials})
        self.hold_limit = hold_limit
        self._reader: aiosqlite.Connection | None = None
        self._opening = asyncio.Lock()
        self._transaction: Transaction | None = None

    async def create_connection(self, with_db: bool = True) -> None:  # noqa: ARG002 - Tortoise's
        async with self._opening:
            if self._connection is None:
                writer = await self._open()
                try:
                    reader = writer if self._in_memory else await self._open(query_only="ON")
                except BaseException:
                    await _discard(writer)
                    raise
                self._connection, self._reader = writer, reader
                await self._post_connect()

    @property
    def _in_memory(self) -> bool:
        return self.filename in (":memory:", "")

    async def _open(self, **extra: str) -> aiosqlite.Connection:
        connection = aiosqlite.connect(self.filename, isolation_level=None)
        connection._thread.daemon = True  # one that nobody closes must not keep the process alive
        try:
            with _translated():
                await connection
            await _run_in(connection, partial(_set_up, {**self.pragmas, **extra}))
        except BaseException:
            await _discard(connection)
            raise
        return connection

    async def close(self) -> None:
        """Close both connections; a transaction that is open is rolled back."""
        if self._transaction is not None:
            self._transaction._abandon("was rolled back because the database was closed")
        writer, reader = self._connection, self._reader
        self._connection = self._reader = None
        # The writer last: whoever closes last folds the WAL into the file, and a reader may not.
        if reader is not None and reader is not writer:
            await reader.close()
        if writer is not None:
            await writer.close()

    def _in_transaction(self) -> TransactionContext:
        return cast("TransactionContext", _transaction(self, limit.get(self.hold_limit)))

    async def execute_many(self, query: str, values: list[list[Any]]) -> None:
        await self._write(query, partial(_many_at_once, query, values))

    async def execute_script(self, query: str) -> None:
        await self._write(query, methodcaller("executescript", query))

    async def _run(self, sql: str, step: Step[T]) -> T:
        if self._in_memory or not _READ.match(sql):
            return await self._write(sql, step)
        if self._reader is None:
            await self.create_connection()
        self.log.debug("%s", sql)
        return await _run_in(self._reader, step)

    async def _write(self, sql: str, step: Step[T]) -> T:
        self._refuse_inside()
        async with self._lock:
            if self._connection is None:
                await self.create_connection()
            self.log.debug("%s", sql)
            return await _run_in(self._connection, partial(_alone, step))

    def _refuse_inside(self) -> None:
        if any(tx.root is self and not tx.over() for tx in held.get()):
            raise UsageError(_INSIDE)

    async def _begin(self, limit: float | None) -> Transaction:
        self._refuse_inside()
        await self._lock.acquire()
        try:
            if self._connection is None:
                await self.create_connection()
            tx = Transaction(self, None)
            await _run_in(tx._connection, methodcaller("execute", "BEGIN IMMEDIATE"))
        except BaseException:
            self._lock.release()
            if self._connection is not None:  # a BEGIN may be on its way
                _submit(self._connection, sqlite3.Connection.rollback)
            raise
        self._transaction = tx
        if limit is not None:
            loop = asyncio.get_running_loop()
            tx._timer = loop.call_later(float(limit), tx._expire, limit)
        return tx


client_class = EmbeddedClient


class Transaction(_Statements, TransactionalDBClient):
    """What `async with in_transaction() as tx` gives: a transaction, or a savepoint in one.

    Leaving the block ends it, by COMMIT or, after any exception, by ROLLBACK; nothing else can.
    """

    def __init__(self, root: EmbeddedClient, parent: Transaction | None) -> None:
        BaseDBAsyncClient.__init__(self, root.connection_name, root.fetch_inserted)
        self._root = root
        self._connection = parent._connection if parent else root._connection
        self._outer = parent
        self._top: Transaction = parent._top if parent else self
        self._name: str = f"{parent._name}_" if parent else "agentflow"
        self._ended = ""
        self._after_commit: list[Callable[[], object]] = []
        # The outermost transaction also keeps, for all its savepoints:
        self._innermost = self
        self._queued: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def root(self) -> EmbeddedClient:
        return self._root

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the outermost transaction is committed, and only then.

        It belongs to the innermost savepoint and is forgotten if that is rolled back. It runs
        outside the transaction; what it raises is logged, for the commit stands.
        """
        self._check()
        self._top._innermost._after_commit.append(callback)

    async def execute_many(self, query: str, values: list[list[Any]]) -> None:
        await self._run(query, methodcaller("executemany", query, values))

    async def execute_script(self, query: str) -> None:  # noqa: ARG002 - refused whatever it is
        raise UsageError(_SCRIPT)

    async def _refuse_control(self) -> NoReturn:
        raise UsageError(CONTROLLED)

    begin = commit = rollback = _refuse_control
    savepoint = savepoint_rollback = release_savepoint = _refuse_control

    async def close(self) -> NoReturn:
        raise UsageError("Close the database outside the transaction: leave its block first.")

    def _in_transaction(self) -> TransactionContext:
        return cast("TransactionContext", _savepoint(self))

    async def _run(self, sql: str, step: Step[T]) -> T:
        self._check()
        if CONTROL.match(sql):
            raise UsageError(CONTROLLED)
        self.log.debug("%s", sql)
        top = self._top
        queued, top._queued = top._queued, []
        try:
            return await _run_in(top._connection, partial(_inside, queued, step))
        except OperationalError as exc:
            if top._ended:  # interrupted by the hold limit
                raise UsageError(top._ended) from exc
            raise

    def over(self) -> str:
        return self._ended or self._top._ended

    def _check(self) -> None:
        if self.over():
            raise UsageError(self.over())
        innermost = self._top._innermost
        if innermost is not self and innermost not in held.get():
            raise UsageError(_CROSSED)

    # The outermost transaction

    def _expire(self, limit: float) -> None:
        log.warning("Transaction held too long, rolled back", hold_limit=limit)
        if self._connection is not None:
            self._connection._conn.interrupt()
        self._abandon(f"was held longer than {limit} s and has been rolled back")

    def _end(self, why: str) -> None:
        self._ended = ENDED.format(why=why)
        if self._timer is not None:
            self._timer.cancel()

    def _free(self) -> None:
        self._root._transaction = None
        self._root._lock.release()

    def _abandon(self, why: str) -> None:
        """Roll back, once; the next holder's BEGIN is queued behind the ROLLBACK."""
        if not self._ended:
            self._end(why)
            self._free()
            _submit(self._connection, sqlite3.Connection.rollback)

    async def _commit(self) -> None:
        """Commit, or raise and leave nothing; a cancellation waits until it is known which."""
        if self._innermost is not self:
            self._abandon("was rolled back: a task had a savepoint open at its end")
        if self._ended:
            raise UsageError(self._ended)
        self._end("has been committed")
        try:
            outcome = _submit(self._connection, partial(_inside, self._queued, _commit))
            outcome.add_done_callback(self._announce)
            with _translated():
                await settled(outcome)
        finally:
            self._free()

    def _announce(self, outcome: asyncio.Future[None]) -> None:
        if outcome.exception() is not None:
            return
        for callback in self._after_commit:
            try:
                callback()
            except Exception:
                log.exception("Callback after a commit failed", callback=repr(callback))

    # Savepoints: their statements ride with the next one that is run, so none of this waits

    def _save(self) -> Transaction:
        self._check()
        inner = Transaction(self._root, self._top._innermost)
        self._top._innermost = inner
        self._top._queued.append(f"SAVEPOINT {inner._name}")
        return inner

    def _release(self) -> None:
        if self._top._innermost is not self:
            self._undo("was rolled back: a task had a savepoint open at its end")
        if self.over():
            raise UsageError(self.over())
        if self._outer is not None:
            self._outer._after_commit += self._after_commit
        self._leave([f"RELEASE {self._name}"], "has been released into its transaction")

    def _undo(self, why: str) -> None:
        if not self.over():
            self._leave([f"ROLLBACK TO {self._name}", f"RELEASE {self._name}"], why)

    def _leave(self, statements: list[str], why: str) -> None:
        """End this savepoint, and any that a task still has open inside it."""
        queued, mine = self._top._queued, f"SAVEPOINT {self._name}"
        if mine in queued:
            del queued[queued.index(mine) :]  # nothing was run in it
        else:
            queued += statements
        inner: Transaction | None = self._top._innermost
        while inner is not None and inner is not self._outer:
            inner._end(why)
            inner = inner._outer
        self._top._innermost = inner or self._top


@asynccontextmanager
async def _transaction(root: EmbeddedClient, limit: float | None) -> AsyncIterator[Transaction]:
    tx = await root._begin(limit)
    try:
        with entered(tx):
            yield tx
    except BaseException:
        tx._abandon("has been rolled back")
        raise
    await tx._commit()


@asynccontextmanager
async def _savepoint(parent: Transaction) -> AsyncIterator[Transaction]:
    tx = parent._save()
    try:
        with entered(tx):
            yield tx
    except BaseException:
        tx._undo("has been rolled back to its savepoint")
        raise
    tx._release()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise OperationalError(exc) from exc
    except sqlite3.IntegrityError as exc:
        raise IntegrityError(exc) from exc


async def _discard(connection: aiosqlite.Connection) -> None:
    """Close without asking, and see the thread end: it would answer to a loop long closed."""
    connection.stop()
    await asyncio.to_thread(connection._thread.join)


async def _run_in(connection: aiosqlite.Connection | None, step: Step[T]) -> T:
    with _translated():
        return await _submit(connection, step)


def _submit(connection: aiosqlite.Connection | None, step: Step[T]) -> asyncio.Future[T]:
    """Queue `step` for the connection's thread, at once and for certain.

    aiosqlite's own coroutines queue nothing before they are awaited, which a timer cannot do.
    """
    if connection is None or connection._connection is None or not connection._running:
        raise OperationalError("The database is closed")
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    connection._tx.put_nowait((future, partial(step, connection._conn)))
    return future


# Steps: run in the connection's thread


def _set_up(pragmas: dict[str, Any], connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    for name, value in pragmas.items():
        connection.execute(f"PRAGMA {name}={value}")


def _insert(sql: str, values: list[Any], connection: sqlite3.Connection) -> int:
    cursor = connection.execute(sql, values)
    cursor.fetchall()
    return cursor.lastrowid or 0


def _query(
    sql: str, values: list[Any], connection: sqlite3.Connection
) -> tuple[int, Sequence[dict[str, Any]]]:
    """Like Tortoise: the rows changed, or else the rows found; NUL cannot stand in SQL text."""
    before = connection.total_changes
    rows = connection.execute(sql.replace("\x00", "'||CHAR(0)||'"), values).fetchall()
    return connection.total_changes - before or len(rows), rows


def _many_at_once(sql: str, values: list[list[Any]], connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(sql, values)
    _commit(connection)


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()  # a deferred constraint refuses COMMIT and leaves all open
        raise


def _alone(step: Step[T], connection: sqlite3.Connection) -> T:
    """Run `step` outside any transaction and leave none behind it."""
    try:
        result = step(connection)
        if connection.in_transaction:
            raise UsageError(_LEFT_OPEN)
    except BaseException:
        connection.rollback()
        raise
    return result


def _inside(queued: list[str], step: Step[T], connection: sqlite3.Connection) -> T:
    """Run `step` in the open transaction, after the savepoint statements due before it."""
    if not connection.in_transaction:
        raise TransactionManagementError(_LOST)
    try:
        for sql in queued:
            connection.execute(sql)
    except BaseException:
        connection.rollback()  # what a savepoint was to undo must not be committed
        raise
    return step(connection)
