"""Whose transaction it is on SQLite: not another task's, not a stranger's who ends it."""

# ruff: noqa: PT012 - what raises is often the end of the block itself

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.memos import LONG_STATEMENT, Note, behind, free, opened, texts
from support.patience import PATIENCE
from tortoise.exceptions import IntegrityError, OperationalError, TransactionManagementError
from tortoise.transactions import in_transaction

from agentflow.errors import UsageError
from agentflow.store.sqlite import EmbeddedClient, Transaction, current_transaction, detached

DATABASES = ("sqlite",)


class TestSelfDeadlock:
    """Trap 4."""

    @pytest.mark.parametrize(
        "write",
        [
            lambda db: Note.create(text="x", using_db=db),
            lambda db: db.execute_query("DELETE FROM memo"),
            lambda db: db.execute_many("INSERT INTO memo (text) VALUES (?)", [["x"]]),
            lambda db: db.execute_script("DELETE FROM memo"),
            lambda db: db._in_transaction().__aenter__(),
        ],
    )
    async def test_a_write_beside_ones_own_transaction_is_refused(
        self, db: EmbeddedClient, write: Callable[[EmbeddedClient], Awaitable[Any]]
    ) -> None:
        async with in_transaction():
            await Note.create(text="kept")
            async with in_transaction(), asyncio.timeout(PATIENCE):
                with pytest.raises(UsageError, match="leave `using_db` out"):
                    await write(db)
        assert await texts() == ["kept"]

    async def test_a_read_beside_it_sees_what_is_committed(self, db: EmbeddedClient) -> None:
        async with in_transaction():
            await Note.create(text="mine")
            assert await Note.all().using_db(db) == []

    async def test_in_memory_a_read_beside_it_is_refused(self) -> None:
        async with opened(":memory:") as client, in_transaction():
            with pytest.raises(UsageError, match="leave `using_db` out"):
                await Note.all().using_db(client)

    async def test_another_task_waits(self, db: EmbeddedClient) -> None:
        entered = asyncio.Event()

        async def outside() -> None:
            await entered.wait()
            await Note.create(text="outside")

        task = asyncio.create_task(outside())
        async with in_transaction():
            entered.set()
            await asyncio.sleep(0.05)
            assert not task.done()
            await Note.create(text="inside")
        await task
        assert [memo.text for memo in await Note.all().order_by("id")] == [
            "inside",
            "outside",
        ]

    async def test_another_database_is_no_deadlock(
        self, db: EmbeddedClient, tmp_path: Path
    ) -> None:
        other = EmbeddedClient(str(tmp_path / "other.db"), connection_name="other")
        async with in_transaction():
            await other.execute_script("CREATE TABLE t (x INT)")
            async with other._in_transaction():
                with pytest.raises(UsageError, match="leave `using_db` out"):
                    await Note.create(text="x", using_db=db)
        await other.close()


class TestTasksThatOutliveIt:
    """Trap 5."""

    async def test_a_task_never_joins_a_strangers_transaction(self, db: EmbeddedClient) -> None:
        ended, stranger_entered = asyncio.Event(), asyncio.Event()

        async def late() -> None:
            await stranger_entered.wait()
            await Note.create(text="late")

        async def late_transaction() -> None:
            await stranger_entered.wait()
            async with in_transaction():
                await Note.create(text="late")

        async def stranger() -> None:
            await ended.wait()
            async with in_transaction():
                stranger_entered.set()
                await Note.create(text="stranger")
                await asyncio.wait(tasks)

        strange = asyncio.create_task(stranger())
        async with in_transaction():
            tasks = [asyncio.create_task(late()), asyncio.create_task(late_transaction())]
        ended.set()
        await strange
        for task in tasks:
            with pytest.raises(UsageError, match=r"committed.*after_commit"):
                await task
        assert await texts() == ["stranger"]

    async def test_a_task_never_outlives_its_savepoint(self, db: EmbeddedClient) -> None:
        go = asyncio.Event()

        async def late() -> None:
            await go.wait()
            await Note.create(text="late")

        async with in_transaction():
            async with in_transaction():
                task = asyncio.create_task(late())
            go.set()
            with pytest.raises(UsageError, match="released"):
                await task
        assert await texts() == []

    async def test_nothing_can_be_done_with_it_after_its_end(self, db: EmbeddedClient) -> None:
        async with in_transaction() as tx:
            pass
        for use in (
            tx.execute_query("SELECT 1"),
            tx.execute_insert("INSERT INTO memo (text) VALUES ('x')", []),
            tx.execute_many("INSERT INTO memo (text) VALUES (?)", [["x"]]),
            tx._in_transaction().__aenter__(),
        ):
            with pytest.raises(UsageError, match="has been committed"):
                await use
        with pytest.raises(UsageError, match="has been committed"):
            tx.after_commit(lambda: None)

    async def test_a_detached_task_has_no_part_in_it(self, db: EmbeddedClient) -> None:
        async def serve(text: str) -> None:
            assert current_transaction() is None
            async with in_transaction():
                await Note.create(text=text)

        async def late() -> None:
            await ended.wait()
            await asyncio.create_task(serve("late"), context=detached())

        ended = asyncio.Event()
        with pytest.raises(ValueError):
            async with in_transaction(), in_transaction():
                waiting = asyncio.create_task(serve("beside"), context=detached())
                stale = asyncio.create_task(late())
                await asyncio.sleep(0.02)
                assert not waiting.done()
                raise ValueError
        ended.set()
        await asyncio.gather(waiting, stale)
        assert await texts() == ["beside", "late"]

    async def test_tasks_inside_it_may_share_it(self, db: EmbeddedClient) -> None:
        async with in_transaction():
            await asyncio.gather(*(Note.create(text=f"{n}") for n in range(5)))
        assert len(await texts()) == 5


class TestUserControl:
    """Trap 8."""

    @pytest.mark.parametrize(
        "name",
        ["begin", "commit", "rollback", "savepoint", "savepoint_rollback", "release_savepoint"],
    )
    async def test_only_the_block_ends_it(self, db: EmbeddedClient, name: str) -> None:
        async with in_transaction() as tx:
            await Note.create(text="kept")
            with pytest.raises(UsageError, match="Leave it to commit; raise in it to roll back"):
                await getattr(tx, name)()
        assert await texts() == ["kept"]

    @pytest.mark.parametrize(
        "sql", ["ROLLBACK", " commit", "END", "BEGIN", "SAVEPOINT x", "\nRELEASE x"]
    )
    async def test_raw_control_is_refused(self, db: EmbeddedClient, sql: str) -> None:
        async with in_transaction() as tx:
            await Note.create(text="kept")
            with pytest.raises(UsageError, match="Leave it to commit"):
                await tx.execute_query(sql)
        assert await texts() == ["kept"]

    async def test_scripts_and_closing_are_refused(self, db: EmbeddedClient) -> None:
        async with in_transaction() as tx:
            await Note.create(text="kept")
            with pytest.raises(UsageError, match="execute_query"):
                await tx.execute_script("DELETE FROM memo")
            with pytest.raises(UsageError, match="leave its block"):
                await tx.close()
        assert await texts() == ["kept"]

    async def end_it(self, tx: Transaction, by: str) -> None:
        if by == "or rollback":
            with pytest.raises(IntegrityError):
                await tx.execute_query("INSERT OR ROLLBACK INTO memo (text) VALUES ('half')")
        elif by == "hidden rollback":
            await behind(tx, "ROLLBACK")
        else:
            with pytest.raises(OperationalError, match="interrupted"):
                timer = asyncio.get_running_loop().call_later(
                    0.05,
                    tx._connection._conn.interrupt,  # type: ignore[union-attr]
                )
                await tx.execute_query(LONG_STATEMENT.format(rows=100_000_000))
            timer.cancel()

    @pytest.mark.parametrize("by", ["or rollback", "hidden rollback", "interrupt"])
    async def test_a_transaction_sqlite_has_ended_is_never_confirmed(
        self, db: EmbeddedClient, by: str
    ) -> None:
        rung: list[str] = []
        with pytest.raises(TransactionManagementError, match="no longer has this transaction"):
            async with in_transaction() as tx:
                tx.after_commit(partial(rung.append, "rung"))
                await Note.create(text="half")
                await self.end_it(tx, by)
        assert await texts() == []
        assert rung == []
        await free(db)

    @pytest.mark.parametrize("by", ["or rollback", "hidden rollback", "interrupt"])
    async def test_what_is_written_after_that_does_not_autocommit(
        self, db: EmbeddedClient, by: str
    ) -> None:
        with pytest.raises(TransactionManagementError):
            async with in_transaction() as tx:
                await Note.create(text="half")
                await self.end_it(tx, by)
                with pytest.raises(TransactionManagementError):
                    await Note.create(text="after")
                with pytest.raises(TransactionManagementError):
                    async with in_transaction():
                        await Note.create(text="after in a savepoint")
        assert await texts() == []
