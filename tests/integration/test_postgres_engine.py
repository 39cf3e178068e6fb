"""The PostgreSQL engine: what is confirmed is stored, and whatever happens, the pool is usable."""

# ruff: noqa: PT012 - what raises is often the end of the block itself

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE
from support.shop.models import Note
from tortoise.connection import get_connection
from tortoise.exceptions import (
    BaseORMException,
    DBConnectionError,
    IntegrityError,
    OperationalError,
    TransactionManagementError,
)
from tortoise.transactions import in_transaction

from agentflow import Settings
from agentflow.errors import UsageError
from agentflow.store import postgres_asyncpg as engine
from agentflow.store.database import Database, Models
from agentflow.store.postgres_asyncpg import PostgresClient
from agentflow.store.sql import Sql
from agentflow.store.transactions import current_transaction, hold_limit

DATABASES = ("postgres",)


@pytest.fixture
async def db(database: str, tmp_path: Path) -> AsyncIterator[PostgresClient]:
    store = Database(Settings(data_dir=tmp_path), Models(["support.shop.models"]))
    await store.open()
    client = get_connection("default")
    assert isinstance(client, PostgresClient)
    try:
        yield client
        await usable(client)
    finally:
        await store.close()


async def usable(client: PostgresClient) -> None:
    """Every connection is back in the pool and in no transaction, and the next block works."""
    pool = await client.opened()
    async with asyncio.timeout(PATIENCE):
        while pool.get_idle_size() < pool.get_size():
            await asyncio.sleep(0.01)
        async with in_transaction():
            await Note.create(text="usable")
        await Note.filter(text="usable").delete()
        assert await client.execute_query_dict("SELECT pg_backend_pid() AS pid")
    open_ones = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = "
    assert await client.execute_query_dict(open_ones + "current_database()") == []


async def texts() -> list[str]:
    return [note.text for note in await Note.all().order_by("text")]


async def pid_of(connection: Any) -> int:
    (row,) = await connection.execute_query_dict("SELECT pg_backend_pid() AS pid")
    pid: int = row["pid"]
    return pid


async def terminate(pid: int) -> None:
    """End the session of somebody else, and see it gone."""
    held = current_transaction()
    sql = Sql(held.root if held else get_connection("default"))
    async with asyncio.timeout(PATIENCE):
        while await sql.rows(
            "SELECT pg_terminate_backend($1) FROM pg_stat_activity WHERE pid = $1", [pid]
        ):
            await asyncio.sleep(0.01)


# What the server is told


async def test_sessions_wait_for_nothing_long_and_keep_no_plan(db: PostgresClient) -> None:
    wanted = {
        "plan_cache_mode": "force_custom_plan",
        "lock_timeout": "2s",
        "statement_timeout": "15s",
        "idle_in_transaction_session_timeout": "5s",
        "application_name": "agentflow writer",
    }
    for name, value in wanted.items():
        async with in_transaction() as tx:
            for connection in (db, tx):
                assert await connection.execute_query_dict(f"SHOW {name}") == [{name: value}]


# After the commit


async def test_callbacks_run_once_the_outermost_block_is_committed(db: PostgresClient) -> None:
    rung: list[str] = []
    async with in_transaction() as tx:
        tx.after_commit(partial(rung.append, "outer"))
        async with in_transaction() as kept:
            kept.after_commit(partial(rung.append, "kept"))
        with pytest.raises(ZeroDivisionError):
            async with in_transaction() as lost:
                lost.after_commit(partial(rung.append, "lost"))
                raise ZeroDivisionError
        assert rung == []
    assert rung == ["outer", "kept"]
    with pytest.raises(ZeroDivisionError):
        async with in_transaction() as tx:
            tx.after_commit(partial(rung.append, "rolled back"))
            raise ZeroDivisionError
    assert rung == ["outer", "kept"]


async def test_a_callback_that_fails_stops_no_other_and_undoes_nothing(db: PostgresClient) -> None:
    rung: list[str] = []
    async with in_transaction() as tx:
        await Note.create(text="stored")
        tx.after_commit(lambda: 1 / 0)
        tx.after_commit(partial(rung.append, "next"))
    assert (rung, await texts()) == (["next"], ["stored"])


async def test_a_transaction_postgres_did_not_commit_is_never_confirmed(db: PostgresClient) -> None:
    """It answers a COMMIT after a failed statement with ROLLBACK, and raises nothing."""
    rung: list[str] = []
    with pytest.raises(TransactionManagementError, match="A statement of this transaction failed"):
        async with in_transaction() as tx:
            tx.after_commit(partial(rung.append, "rung"))
            await Note.create(id=7, text="a")
            with suppress(IntegrityError):
                await Note.create(id=7, text="b")
    assert (rung, await texts()) == ([], [])


# Savepoints


async def test_a_failed_part_is_undone_alone(db: PostgresClient) -> None:
    async with in_transaction():
        await Note.create(text="before")
        for error in (ValueError(), OperationalError(), asyncio.CancelledError()):
            with pytest.raises(type(error)):
                async with in_transaction():
                    await Note.create(text="lost")
                    raise error
        with pytest.raises(OperationalError, match="no_such_table"):
            async with in_transaction() as tx:
                await tx.execute_query("SELECT * FROM no_such_table")
        async with in_transaction():
            await Note.create(text="kept")
    assert await texts() == ["before", "kept"]


async def test_a_failure_that_was_swallowed_undoes_its_part_alone(db: PostgresClient) -> None:
    async with in_transaction():
        await Note.create(id=7, text="before")
        with pytest.raises(OperationalError, match="aborted"):
            async with in_transaction():
                await Note.create(text="lost")
                with suppress(IntegrityError):
                    await Note.create(id=7, text="b")
        await Note.create(text="later")
    assert await texts() == ["before", "later"]


async def test_they_nest(db: PostgresClient) -> None:
    async with in_transaction():
        with pytest.raises(ValueError):
            async with in_transaction():
                await Note.create(text="a")
                async with in_transaction(), in_transaction():
                    await Note.create(text="b")
                raise ValueError
        async with in_transaction():
            await Note.create(text="c")
            with pytest.raises(ValueError):
                async with in_transaction(), in_transaction():
                    raise ValueError
            await Note.create(text="d")
    assert await texts() == ["c", "d"]


async def test_tasks_that_share_a_transaction_take_turns(db: PostgresClient) -> None:
    async with in_transaction() as tx, in_transaction():
        await asyncio.gather(
            *(Note.create(text=f"{n}") for n in range(5)),
            *(Note.create(text=f"{n}", using_db=tx) for n in range(5, 9)),
        )
    assert await texts() == [f"{n}" for n in range(9)]


# Who ends a transaction


@pytest.mark.parametrize(
    "end",
    [
        lambda tx: tx.begin(),
        lambda tx: tx.commit(),
        lambda tx: tx.rollback(),
        lambda tx: tx.execute_query("/* quietly */ COMMIT"),
        lambda tx: tx.execute_query("rollback"),
        lambda tx: tx.execute_script("-- x\n;ABORT; BEGIN"),
        lambda tx: tx.execute_query("START TRANSACTION"),
        lambda tx: tx.execute_query("RELEASE agentflow_1"),
    ],
)
async def test_only_its_block_begins_and_ends_a_transaction(
    db: PostgresClient, end: Callable[[Any], Awaitable[None]]
) -> None:
    async with in_transaction() as tx, in_transaction() as inner:
        for each in (tx, inner):
            with pytest.raises(UsageError, match="begins and ends a transaction"):
                await end(each)
        await Note.create(text="goes on")
    assert await texts() == ["goes on"]


async def test_after_a_hidden_end_nothing_is_stored_one_by_one(db: PostgresClient) -> None:
    rung: list[str] = []
    with pytest.raises(UsageError, match="was ended by a statement in it"):
        async with in_transaction() as tx:
            tx.after_commit(partial(rung.append, "rung"))
            await Note.create(text="lost")
            with suppress(UsageError):
                await tx.execute_query("UPDATE note SET text = 'x' WHERE id < 0; ROLLBACK")
            with pytest.raises(UsageError):
                await Note.create(text="alone")
            with suppress(UsageError):
                async with in_transaction():
                    await Note.create(text="alone in a savepoint")
    assert (rung, await texts()) == ([], [])


async def test_an_ended_transaction_is_refused_with_the_way_out(db: PostgresClient) -> None:
    async with in_transaction() as tx:
        async with in_transaction() as inner:
            pass
        with pytest.raises(UsageError, match="released into its transaction"):
            await Note.create(text="late", using_db=inner)
    with pytest.raises(UsageError, match="has been committed"):
        await Note.create(text="late", using_db=tx)
    with pytest.raises(UsageError, match="has been committed"):
        tx.after_commit(print)
    assert await texts() == []


# The hold limit


async def test_one_held_too_long_is_rolled_back_while_it_does_something_else(
    db: PostgresClient,
) -> None:
    with hold_limit(0.1), pytest.raises(UsageError, match=r"was held longer than 0\.1 s"):
        async with in_transaction():
            await Note.create(text="lost")
            await asyncio.sleep(0.3)
    assert await texts() == []


async def test_one_held_too_long_is_rolled_back_in_the_midst_of_a_statement(
    db: PostgresClient,
) -> None:
    with hold_limit(0.1), pytest.raises(UsageError, match=r"was held longer than 0\.1 s"):
        async with in_transaction() as tx:
            await Note.create(text="lost")
            await tx.execute_query("SELECT pg_sleep(5)")
    assert await texts() == []


async def test_a_process_that_stands_still_is_ended_by_the_server(db: PostgresClient) -> None:
    with hold_limit(None), pytest.raises(DBConnectionError):
        async with in_transaction() as tx:
            await Note.create(text="lost")
            await tx.execute_query("SET idle_in_transaction_session_timeout = '100ms'")
            await asyncio.sleep(0.3)
            await Note.create(text="too late")
    assert await texts() == []


# Cancellation


async def busy() -> None:
    async with in_transaction():
        await Note.create(text="one")
        with suppress(ZeroDivisionError):
            async with in_transaction():
                await Note.create(text="undone")
                raise ZeroDivisionError
        async with in_transaction():
            await Note.create(text="two")


@pytest.mark.parametrize("blows", [1, 2])
async def test_a_transaction_may_be_canceled_at_any_step(db: PostgresClient, blows: int) -> None:
    """`blows`: how often it is canceled, the second time while it rolls back."""
    found = []
    for steps in range(80):
        await Note.all().delete()
        task = asyncio.create_task(busy())
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0001 * steps)
        for _ in range(blows):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)
        found.append(await texts())
        assert found[-1] in ([], ["one", "two"]), steps
    assert [] in found


async def test_a_cancellation_during_the_commit_waits_until_it_is_known(
    db: PostgresClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, rung = asyncio.Event(), []
    execute = engine.Transaction._execute

    async def slow(self: Any, statement: str) -> str:
        if statement == "COMMIT":
            begun.set()
            await asyncio.sleep(0.1)
        return await execute(self, statement)

    monkeypatch.setattr(engine.Transaction, "_execute", slow)

    async def store() -> None:
        async with in_transaction() as tx:
            tx.after_commit(partial(rung.append, "rung"))
            await Note.create(text="stored")

    task = asyncio.create_task(store())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (rung, await texts()) == (["rung"], ["stored"])


async def test_a_canceled_statement_is_stopped_at_the_server(db: PostgresClient) -> None:
    async def slow() -> None:
        async with in_transaction() as tx:
            await Note.create(text="lost")
            await tx.execute_query("SELECT pg_sleep(10)")

    task = asyncio.create_task(slow())
    await asyncio.sleep(0.2)
    task.cancel()
    async with asyncio.timeout(3):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await texts() == []


# Sessions that are lost


async def test_a_killed_session_is_an_error_of_tortoise_and_the_next_statement_works(
    db: PostgresClient,
) -> None:
    for _ in range(3):
        with pytest.raises((OperationalError, DBConnectionError)):
            async with in_transaction() as tx:
                await Note.create(text="lost")
                await terminate(await pid_of(tx))
                await Note.create(text="lost too")
        assert await texts() == []


async def test_a_session_killed_before_the_commit_confirms_nothing(db: PostgresClient) -> None:
    rung: list[str] = []
    with pytest.raises((OperationalError, DBConnectionError)):
        async with in_transaction() as tx:
            tx.after_commit(partial(rung.append, "rung"))
            await Note.create(text="lost")
            await terminate(await pid_of(tx))
    assert (rung, await texts()) == ([], [])


async def test_a_session_killed_in_a_savepoint_takes_the_whole_with_it(db: PostgresClient) -> None:
    with pytest.raises((OperationalError, DBConnectionError, UsageError)):
        async with in_transaction() as tx:
            await Note.create(text="lost")
            with suppress(BaseORMException):
                async with in_transaction():
                    await terminate(await pid_of(tx))
                    await Note.create(text="lost too")
            await Note.create(text="alone?")
    assert await texts() == []


async def test_a_statement_that_waits_for_a_lock_gives_up_soon(db: PostgresClient) -> None:
    row = await Note.create(text="held")
    async with in_transaction() as tx:
        await Note.filter(id=row.id).using_db(tx).update(text="changed")

        async def stranger() -> None:
            async with in_transaction() as other:
                await other.execute_query("SET LOCAL lock_timeout = '50ms'")
                await Note.filter(id=row.id).using_db(other).update(text="mine")

        with pytest.raises(DBConnectionError, match="lock timeout"):
            await asyncio.create_task(stranger(), context=engine_context())
    assert await texts() == ["changed"]


def engine_context() -> Any:
    from agentflow.store.transactions import detached

    return detached()


async def test_more_transactions_than_connections_wait_for_their_turn(db: PostgresClient) -> None:
    async def store(n: int) -> None:
        async with in_transaction():
            await Note.create(text=f"{n:03}")

    await asyncio.gather(*map(store, range(60)))
    assert len(await texts()) == 60
