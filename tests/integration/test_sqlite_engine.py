"""The SQLite engine, one test or more for each trap of Tortoise's own."""

# ruff: noqa: PT012 - what raises is often the end of the block itself

import asyncio
import gc
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE
from tortoise import fields
from tortoise.context import TortoiseContext
from tortoise.exceptions import IntegrityError, OperationalError, TransactionManagementError
from tortoise.migrations.api import migrate
from tortoise.models import Model
from tortoise.transactions import atomic, in_transaction

from agentflow.errors import UsageError
from agentflow.store import sqlite as engine
from agentflow.store.sqlite import (
    EmbeddedClient,
    Transaction,
    current_transaction,
    detached,
    hold_limit,
)

DATABASES = ("sqlite",)


class Note(Model):
    id = fields.IntField(primary_key=True)
    text = fields.CharField(max_length=100, unique=True)

    class Meta:
        table = "memo"  # Tortoise keeps queries by table for the whole process


def config(path: Path | str, **credentials: Any) -> dict[str, Any]:
    return {
        "connections": {
            "default": {
                "engine": "agentflow.store.sqlite",
                "credentials": {"file_path": str(path), **credentials},
            }
        },
        "apps": {
            "models": {"models": [__name__], "default_connection": "default"},
        },
    }


@asynccontextmanager
async def opened(path: Path | str, **credentials: Any) -> AsyncIterator[EmbeddedClient]:
    async with TortoiseContext() as context:
        await context.init(config=config(path, **credentials))
        await context.generate_schemas()
        client = context.db()
        assert isinstance(client, EmbeddedClient)
        yield client


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[EmbeddedClient]:
    async with opened(tmp_path / "notes.db") as client:
        yield client


async def texts() -> list[str]:
    return await Note.all().order_by("text").values_list("text", flat=True)


async def pragma(client: EmbeddedClient, name: str) -> Any:
    return (await client.execute_query_dict(f"PRAGMA {name}"))[0]


def occupy(client: EmbeddedClient, seconds: float) -> None:
    """Keep the thread of the writing connection busy."""
    engine._submit(client._connection, lambda _: time.sleep(seconds))


async def free(client: EmbeddedClient) -> None:
    """The lock is free, no transaction is left open, and the next one works."""
    async with asyncio.timeout(PATIENCE):
        async with in_transaction():
            await Note.create(text="free")
        await Note.filter(text="free").delete()
    assert not client._lock.locked()
    assert client._transaction is None


LONG_STATEMENT = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
    " INSERT INTO memo (text) SELECT 'long ' || max(i) FROM n"
)


async def behind(tx: Transaction, sql: str) -> None:
    """Run a statement on the connection itself, past everything the engine refuses."""
    assert tx._connection is not None
    await (await tx._connection.execute(sql)).close()


class TestConnections:
    async def test_pragmas_are_durable_by_default(self, db: EmbeddedClient) -> None:
        assert await pragma(db, "journal_mode") == {"journal_mode": "wal"}
        assert await pragma(db, "synchronous") == {"synchronous": 2}
        assert await pragma(db, "foreign_keys") == {"foreign_keys": 1}
        assert await pragma(db, "busy_timeout") == {"timeout": 5000}

    async def test_credentials_override_pragmas(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "x.db", synchronous="NORMAL", busy_timeout=100) as client:
            assert await pragma(client, "synchronous") == {"synchronous": 1}
            assert await pragma(client, "busy_timeout") == {"timeout": 100}

    async def test_the_reading_connection_cannot_write(self, db: EmbeddedClient) -> None:
        await db.execute_query("SELECT 1")
        with pytest.raises(OperationalError, match="readonly"):
            await engine._run_in(
                db._reader,
                lambda sqlite: sqlite.execute("INSERT INTO memo (text) VALUES ('x')"),
            )

    @pytest.mark.parametrize(
        ("sql", "reads"),
        [
            ("SELECT 1", True),
            ("\n select 'DELETE'", True),
            ("WITH n AS (SELECT 1) SELECT * FROM n", True),
            ("EXPLAIN QUERY PLAN SELECT 1", True),
            ("WITH n AS (SELECT 1)\nINSERT INTO memo SELECT * FROM n", False),
            ("with n as (select 1) delete from memo", False),
            ("INSERT INTO memo (text) SELECT 'x'", False),
            ("UPDATE memo SET text = 'x' RETURNING id", False),
            ("PRAGMA user_version", False),
            ("/* SELECT */ DELETE FROM memo", False),
        ],
    )
    def test_only_what_surely_reads_goes_to_the_reading_connection(
        self, sql: str, reads: bool
    ) -> None:
        assert bool(engine._READ.match(sql)) is reads

    async def test_reads_do_not_wait_for_a_transaction_nor_see_it(self, db: EmbeddedClient) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with in_transaction():
                await Note.create(text="held")
                entered.set()
                await leave.wait()

        task = asyncio.create_task(hold())
        await entered.wait()
        async with asyncio.timeout(PATIENCE):
            assert await texts() == []
        leave.set()
        await task
        assert await texts() == ["held"]

    async def test_errors_keep_tortoises_names(self, db: EmbeddedClient) -> None:
        await Note.create(text="once")
        with pytest.raises(IntegrityError, match="UNIQUE"):
            await Note.create(text="once")
        async with in_transaction():
            with pytest.raises(IntegrityError, match="UNIQUE"):
                await Note.create(text="once")
        with pytest.raises(OperationalError, match="no such table"):
            await db.execute_query("SELECT * FROM nowhere")

    async def test_a_file_that_cannot_be_opened_is_an_operational_error(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(OperationalError, match="unable to open"):
            async with opened(tmp_path / "missing" / "x.db"):
                pass  # pragma: no cover

    async def test_first_uses_at_once_open_one_pair(self, tmp_path: Path) -> None:
        async with TortoiseContext() as context:
            await context.init(config=config(tmp_path / "x.db"))
            client = context.db()
            await asyncio.gather(
                *(client.execute_query("SELECT 1") for _ in range(10)),
                *(client.execute_query("PRAGMA user_version") for _ in range(10)),
            )

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_a_first_use_may_be_cancelled_at_any_step(self, tmp_path: Path) -> None:
        for n in range(25):
            client = EmbeddedClient(str(tmp_path / f"{n}.db"), connection_name="x")
            task = asyncio.create_task(client.execute_query("PRAGMA user_version"))
            for _ in range(n):
                await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(PATIENCE):
                await client.execute_script("CREATE TABLE t (x INT)")
                assert await client.execute_query_dict("SELECT * FROM t") == []
            await client.close()
        gc.collect()  # a handle that sqlite3 opened for nobody is closed here; 3.13 says so

    async def test_closing_rolls_an_open_transaction_back(self, db: EmbeddedClient) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with in_transaction():
                await Note.create(text="held")
                entered.set()
                await leave.wait()

        task = asyncio.create_task(hold())
        await entered.wait()
        await db.close()
        leave.set()
        with pytest.raises(UsageError, match="the database was closed"):
            await task
        assert await texts() == []
        await free(db)
        await db.close()  # it was opened anew, behind the context's back

    async def test_the_bare_connection_is_not_handed_out(self, db: EmbeddedClient) -> None:
        with pytest.raises(UsageError, match="execute_query"):
            db.acquire_connection()

    async def test_a_script_that_leaves_a_transaction_open_is_refused(
        self, db: EmbeddedClient
    ) -> None:
        for left_open in (
            "BEGIN; INSERT INTO memo (text) VALUES ('x')",
            "BEGIN; INSERT INTO memo (text) VALUES ('x'); SELECT * FROM nowhere; COMMIT",
        ):
            with pytest.raises((UsageError, OperationalError)):
                await db.execute_script(left_open)
        with pytest.raises(UsageError, match=r"in_transaction\(\)"):
            await db.execute_query("BEGIN")
        assert await texts() == []
        await free(db)

    async def test_execute_many_is_all_or_nothing_outside_a_transaction(
        self, db: EmbeddedClient
    ) -> None:
        insert = "INSERT INTO memo (text) VALUES (?)"
        with pytest.raises(IntegrityError):
            await db.execute_many(insert, [["a"], ["a"]])
        assert await texts() == []
        await db.execute_many(insert, [["a"], ["b"]])
        assert await texts() == ["a", "b"]

    async def test_counts_and_rows_are_as_tortoise_gives_them(self, db: EmbeddedClient) -> None:
        memo = await Note.create(text="a\x00b")
        assert memo.id == 1
        await memo.refresh_from_db()
        assert memo.text == "a\x00b"
        await Note.bulk_create([Note(text=str(n)) for n in range(5)])
        assert await db.execute_query_dict("SELECT 'a\x00b' AS text") == [{"text": "a\x00b"}]
        count, rows = await db.execute_query("SELECT * FROM memo")
        assert (count, len(rows)) == (6, 6)
        assert await Note.filter(id__gt=3).delete() == 3


class TestInMemory:
    async def test_transactions_work_on_its_one_connection(self) -> None:
        async with opened(":memory:") as client:
            async with in_transaction():
                await Note.create(text="kept")
            with pytest.raises(ValueError):
                async with in_transaction():
                    await Note.create(text="lost")
                    raise ValueError
            assert await texts() == ["kept"]
            await free(client)

    async def test_a_read_waits_instead_of_seeing_what_is_not_committed(self) -> None:
        async with opened(":memory:"):
            entered = asyncio.Event()

            async def hold() -> None:
                async with in_transaction():
                    await Note.create(text="first")
                    entered.set()
                    await asyncio.sleep(0.05)
                    await Note.create(text="second")

            task = asyncio.create_task(hold())
            await entered.wait()
            assert await texts() == ["first", "second"]
            await task


class TestTransactions:
    async def test_it_is_stored_when_the_block_is_left(self, db: EmbeddedClient) -> None:
        async with in_transaction() as tx:
            memo = await Note.create(text="kept", using_db=tx)
            assert await texts() == ["kept"]
        assert memo.id == 1
        assert await texts() == ["kept"]

    async def test_any_exception_rolls_it_back(self, db: EmbeddedClient) -> None:
        @atomic()
        async def fail(exc: BaseException) -> None:
            await Note.create(text="lost")
            raise exc

        for exc in (ValueError(), OperationalError("x"), asyncio.CancelledError()):
            with pytest.raises(type(exc)):
                await fail(exc)
        assert await texts() == []
        await free(db)

    async def test_a_transaction_management_error_rolls_back_too(self, db: EmbeddedClient) -> None:
        with pytest.raises(TransactionManagementError):
            async with in_transaction():
                await Note.create(text="half")
                raise TransactionManagementError("mine")
        async with in_transaction():
            await Note.create(text="next")
        assert await texts() == ["next"]

    async def test_a_refused_commit_rolls_back(self, db: EmbeddedClient) -> None:
        await db.execute_script(
            "CREATE TABLE page (memo INT REFERENCES memo (id) DEFERRABLE INITIALLY DEFERRED)"
        )
        rung: list[str] = []
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            async with in_transaction() as tx:
                tx.after_commit(partial(rung.append, "rung"))
                await Note.create(text="half")
                await tx.execute_query("INSERT INTO page VALUES (99)")
        assert await texts() == []
        assert rung == []
        await free(db)

    async def test_current_transaction_is_the_innermost_of_this_task(
        self, db: EmbeddedClient
    ) -> None:
        async def elsewhere() -> Transaction | None:
            return current_transaction()

        outside = asyncio.create_task(elsewhere())
        assert current_transaction() is None
        async with in_transaction() as tx:
            assert current_transaction() is tx
            assert await outside is None
            async with in_transaction() as inner:
                assert current_transaction() is inner
            assert current_transaction() is tx
        assert current_transaction() is None

    async def test_execute_many_belongs_to_the_transaction(self, db: EmbeddedClient) -> None:
        with pytest.raises(ValueError):
            async with in_transaction() as tx:
                await tx.execute_many("INSERT INTO memo (text) VALUES (?)", [["a"], ["b"]])
                assert await texts() == ["a", "b"]
                raise ValueError
        assert await texts() == []

    async def test_tortoises_own_get_or_create_and_update_or_create_work(
        self, db: EmbeddedClient
    ) -> None:
        assert (await Note.get_or_create(text="a"))[1]
        async with in_transaction():
            assert not (await Note.get_or_create(text="a"))[1]
            assert (await Note.get_or_create(text="b"))[1]
            assert (await Note.update_or_create({"text": "c"}, text="b"))[1] is False
        assert await texts() == ["a", "c"]

    async def test_waiting_transactions_are_served_in_order(self, db: EmbeddedClient) -> None:
        order: list[int] = []

        async def one(n: int) -> None:
            async with in_transaction():
                order.append(n)
                await Note.create(text=str(n))

        await asyncio.gather(*(one(n) for n in range(10)))
        assert order == list(range(10))


class TestCancellation:
    """Trap 1."""

    async def test_a_cancel_at_any_step_never_loses_the_lock(self, db: EmbeddedClient) -> None:
        async def write(n: int) -> None:
            async with in_transaction():
                await Note.create(text=f"{n}")

        for n in range(40):
            task = asyncio.create_task(write(n))
            for _ in range(n):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await free(db)

    async def test_a_cancel_while_begin_waits_never_loses_the_lock(
        self, db: EmbeddedClient, tmp_path: Path
    ) -> None:
        stranger = sqlite3.connect(tmp_path / "notes.db", isolation_level=None)
        stranger.execute("BEGIN IMMEDIATE")

        async def write() -> None:
            async with in_transaction():
                await Note.create(text="never")

        task = asyncio.create_task(write())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stranger.execute("COMMIT")
        stranger.close()
        await free(db)
        assert await texts() == []

    async def test_a_cancelled_commit_ends_before_the_cancellation_goes_on(
        self, db: EmbeddedClient
    ) -> None:
        rung: list[str] = []
        committing = asyncio.Event()

        async def write() -> None:
            async with in_transaction() as tx:
                await Note.create(text="committed")
                tx.after_commit(partial(rung.append, "rung"))
                occupy(db, 0.1)
                committing.set()

        task = asyncio.create_task(write())
        await committing.wait()
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()
        assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rung == ["rung"]
        assert await texts() == ["committed"]
        await free(db)

    async def test_after_a_cancel_storm_exactly_what_was_committed_is_there(
        self, db: EmbeddedClient
    ) -> None:
        committed: list[str] = []
        dice = random.Random(7)

        async def write(n: int) -> None:
            async with in_transaction() as tx:
                await Note.create(text=f"{n:03} a")
                async with in_transaction() as inner:
                    await Note.create(text=f"{n:03} b")
                    inner.after_commit(partial(committed.extend, [f"{n:03} a", f"{n:03} b"]))
                await tx.execute_query("SELECT 1")

        async def storm(task: asyncio.Task[None]) -> None:
            await asyncio.sleep(dice.random() * 0.2)
            task.cancel()

        tasks = [asyncio.create_task(write(n)) for n in range(200)]
        await asyncio.gather(*map(storm, tasks))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 0 < len(committed) < 400
        assert await texts() == sorted(committed)
        await free(db)

    async def test_a_cancelled_write_outside_a_transaction_never_loses_the_lock(
        self, db: EmbeddedClient
    ) -> None:
        for n in range(15):
            task = asyncio.create_task(Note.create(text=f"{n}"))  # type: ignore[arg-type]
            for _ in range(n):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await free(db)


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


class TestSavepoints:
    """Trap 9, and what savepoints are for."""

    async def test_a_failed_part_is_undone_alone(self, db: EmbeddedClient) -> None:
        async with in_transaction():
            await Note.create(text="before")
            for exc in (ValueError(), TransactionManagementError(), asyncio.CancelledError()):
                with pytest.raises(type(exc)):
                    async with in_transaction():
                        await Note.create(text="lost")
                        raise exc
            async with in_transaction():
                await Note.create(text="kept")
            await Note.create(text="later")
        assert await texts() == ["before", "kept", "later"]

    async def test_the_last_savepoint_is_undone_before_the_commit(self, db: EmbeddedClient) -> None:
        async with in_transaction():
            await Note.create(text="kept")
            with pytest.raises(ValueError):
                async with in_transaction():
                    await Note.create(text="lost")
                    raise ValueError
        assert await texts() == ["kept"]

    async def test_they_nest(self, db: EmbeddedClient) -> None:
        async with in_transaction():
            with pytest.raises(ValueError):
                async with in_transaction():
                    await Note.create(text="a")
                    async with in_transaction():
                        await Note.create(text="b")
                        async with in_transaction():
                            pass
                    raise ValueError
            async with in_transaction():
                async with in_transaction():
                    await Note.create(text="c")
                with pytest.raises(ValueError):
                    async with in_transaction(), in_transaction():
                        raise ValueError
                await Note.create(text="d")
        assert await texts() == ["c", "d"]

    async def test_the_outer_tx_may_be_used_in_its_savepoint(self, db: EmbeddedClient) -> None:
        async with in_transaction() as tx:
            with pytest.raises(ValueError):
                async with in_transaction():
                    await Note.create(text="lost", using_db=tx)
                    raise ValueError
        assert await texts() == []

    async def test_one_opened_by_the_outer_tx_nests_too(self, db: EmbeddedClient) -> None:
        rung: list[str] = []
        async with in_transaction() as tx:
            with pytest.raises(ValueError):
                async with in_transaction():
                    async with tx._in_transaction():
                        await Note.create(text="lost")
                        tx.after_commit(partial(rung.append, "lost"))
                    raise ValueError
            await Note.create(text="kept")
        assert await texts() == ["kept"]
        assert rung == []

    async def test_their_statements_ride_with_others_and_unused_ones_are_never_sent(
        self, db: EmbeddedClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hops: list[object] = []
        sent: list[str] = []
        submit = engine._submit
        await db.execute_script("SELECT 1")
        await engine._run_in(db._connection, lambda raw: raw.set_trace_callback(sent.append))
        monkeypatch.setattr(engine, "_submit", lambda *step: hops.append(step) or submit(*step))
        async with in_transaction() as tx:
            async with in_transaction(), in_transaction():
                pass
            async with in_transaction():
                await tx.execute_query("SELECT 'a'")
                async with in_transaction():
                    pass
            with pytest.raises(ValueError):
                async with in_transaction():
                    await tx.execute_query("SELECT 'b'")
                    raise ValueError
            with pytest.raises(ValueError):
                async with in_transaction(), in_transaction():
                    raise ValueError
        assert sent == [
            "BEGIN IMMEDIATE",
            "SAVEPOINT agentflow_",
            "SELECT 'a'",
            "RELEASE agentflow_",
            "SAVEPOINT agentflow_",
            "SELECT 'b'",
            "ROLLBACK TO agentflow_",
            "RELEASE agentflow_",
            "COMMIT",
        ]
        assert len(hops) == 4

    async def test_gathered_savepoints_are_refused(self, db: EmbeddedClient) -> None:
        async def part(n: int) -> None:
            async with in_transaction():
                await Note.create(text=f"{n}")
                await asyncio.sleep(0.01)

        async with in_transaction():
            outcomes = await asyncio.gather(*map(part, range(3)), return_exceptions=True)
            await part(9)
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert len(refused) == 2
        for outcome in refused:
            assert isinstance(outcome, UsageError)
            assert "one after another" in str(outcome)
        assert len(await texts()) == 2

    async def test_a_write_never_slips_into_another_tasks_savepoint(
        self, db: EmbeddedClient
    ) -> None:
        opened, leave = asyncio.Event(), asyncio.Event()

        async def part() -> None:
            async with in_transaction():
                await Note.create(text="part")
                opened.set()
                await leave.wait()

        async with in_transaction():
            task = asyncio.create_task(part())
            await opened.wait()
            with pytest.raises(UsageError, match="Another task has a savepoint open"):
                await Note.create(text="slipped")
            leave.set()
            await task
            await Note.create(text="own")
        assert await texts() == ["own", "part"]

    @pytest.mark.parametrize("depth", [1, 2])
    async def test_a_savepoint_left_open_by_a_task_is_not_committed(
        self, db: EmbeddedClient, depth: int
    ) -> None:
        opened, leave = asyncio.Event(), asyncio.Event()

        async def part() -> None:
            async with in_transaction():
                await Note.create(text="half")
                opened.set()
                await leave.wait()

        @atomic()
        async def whole(depth: int) -> asyncio.Task[None]:
            if depth > 1:
                return await whole(depth - 1)
            tasks.append(asyncio.create_task(part()))
            await opened.wait()
            return tasks[0]

        tasks: list[asyncio.Task[None]] = []
        with pytest.raises(UsageError, match="savepoint open at its end"):
            await whole(depth)
        leave.set()
        with pytest.raises(UsageError, match="savepoint open at its end"):
            await tasks[0]
        assert await texts() == []
        await free(db)

    async def test_a_savepoint_that_cannot_be_undone_takes_all_with_it(
        self, db: EmbeddedClient
    ) -> None:
        with pytest.raises(OperationalError):
            async with in_transaction() as tx:
                with pytest.raises(ValueError):
                    async with in_transaction() as part:
                        await Note.create(text="half")
                        await behind(tx, f"RELEASE {part._name}")
                        raise ValueError
        assert await texts() == []
        await free(db)

    async def test_a_time_limit_in_a_part_undoes_the_part(self, db: EmbeddedClient) -> None:
        """Trap 6: the statement runs on, but in its savepoint, which is then undone."""
        async with in_transaction():
            await Note.create(text="kept")
            with pytest.raises(TimeoutError):
                async with in_transaction(), asyncio.timeout(0.02):
                    await Note.create(text="lost")
                    await db_of(current_transaction()).execute_query(
                        LONG_STATEMENT.format(rows=500_000)
                    )
            async with in_transaction():
                await Note.create(text="next")
        assert await texts() == ["kept", "next"]


def db_of(tx: Transaction | None) -> Transaction:
    assert tx is not None
    return tx


class TestTwoProcesses:
    """Trap 10."""

    async def test_read_then_write_waits_for_the_other_writer(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "x.db") as first, opened(tmp_path / "x.db") as second:
            await first.execute_query("INSERT INTO memo (text) VALUES ('0')")

            async def count_up(client: EmbeddedClient) -> None:
                for _ in range(20):
                    async with client._in_transaction() as tx:
                        [row] = await tx.execute_query_dict("SELECT text FROM memo")
                        await asyncio.sleep(0)
                        await tx.execute_query("UPDATE memo SET text = ?", [int(row["text"]) + 1])

            await asyncio.gather(count_up(first), count_up(second))
            assert await texts() == ["40"]

    async def test_a_busy_database_is_an_operational_error_and_frees_the_lock(
        self, tmp_path: Path
    ) -> None:
        async with opened(tmp_path / "x.db", busy_timeout=20) as client:
            stranger = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
            stranger.execute("BEGIN IMMEDIATE")
            with pytest.raises(OperationalError, match="locked"):
                async with in_transaction():
                    pass  # pragma: no cover
            stranger.execute("COMMIT")
            stranger.close()
            await free(client)


class TestHoldLimit:
    @pytest.fixture
    async def db(self, tmp_path: Path) -> AsyncIterator[EmbeddedClient]:
        async with opened(tmp_path / "notes.db", hold_limit=0.1) as client:
            yield client

    async def test_a_transaction_held_too_long_is_rolled_back_and_frees_the_lock(
        self, db: EmbeddedClient
    ) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        rung: list[str] = []

        async def hold() -> None:
            async with in_transaction() as tx:
                tx.after_commit(partial(rung.append, "rung"))
                await Note.create(text="held")
                entered.set()
                await leave.wait()
                with pytest.raises(UsageError, match=r"longer than 0\.1 s"):
                    await Note.create(text="next use")
                assert current_transaction() is None

        task = asyncio.create_task(hold())
        await entered.wait()
        async with asyncio.timeout(PATIENCE):
            await Note.create(text="stranger")
        leave.set()
        with pytest.raises(UsageError, match=r"longer than 0\.1 s"):
            await task
        assert await texts() == ["stranger"]
        assert rung == []
        await free(db)

    async def test_it_interrupts_a_long_statement(self, db: EmbeddedClient) -> None:
        began = time.monotonic()
        with pytest.raises(UsageError, match="held longer"):
            async with in_transaction() as tx, in_transaction():
                await tx.execute_query(LONG_STATEMENT.format(rows=100_000_000))
        assert time.monotonic() - began < 2
        assert await texts() == []
        await free(db)

    async def test_ones_own_error_is_not_hidden(self, db: EmbeddedClient) -> None:
        with pytest.raises(ValueError):
            async with in_transaction():
                await asyncio.sleep(0.15)
                raise ValueError
        await free(db)

    async def test_it_counts_from_the_lock_and_ends_with_the_block(
        self, db: EmbeddedClient
    ) -> None:
        async def hold(n: int) -> None:
            async with in_transaction():
                await asyncio.sleep(0.05)
                await Note.create(text=f"{n}")

        await asyncio.gather(*map(hold, range(5)))
        assert len(await texts()) == 5

    async def test_after_its_end_it_interrupts_nobody(self, db: EmbeddedClient) -> None:
        async with in_transaction():
            await Note.create(text="quick")
        began = time.monotonic()
        await db.execute_query(LONG_STATEMENT.format(rows=1_500_000))
        assert time.monotonic() - began > db.hold_limit
        assert len(await texts()) == 2

    async def test_code_that_bounds_itself_can_do_without(self, db: EmbeddedClient) -> None:
        with hold_limit(None):
            async with in_transaction():
                await Note.create(text="slow")
                await asyncio.sleep(0.2)
        assert await texts() == ["slow"]
        with hold_limit(0.01), pytest.raises(UsageError, match=r"longer than 0\.01 s"):
            async with in_transaction():
                await asyncio.sleep(0.05)


class TestAfterCommit:
    async def test_callbacks_come_in_order_after_the_commit(
        self, db: EmbeddedClient, tmp_path: Path
    ) -> None:
        seen: list[object] = []

        def look(name: str) -> None:
            with sqlite3.connect(tmp_path / "notes.db") as stranger:
                seen.append((name, stranger.execute("SELECT count(*) FROM memo").fetchone()[0]))
            stranger.close()

        async with in_transaction() as tx:
            tx.after_commit(partial(look, "first"))
            async with in_transaction() as inner:
                inner.after_commit(partial(look, "second"))
                tx.after_commit(partial(look, "third"))
            await Note.create(text="x")
            assert seen == []
        assert seen == [("first", 1), ("second", 1), ("third", 1)]

    async def test_a_rollback_forgets_them(self, db: EmbeddedClient) -> None:
        rung: list[str] = []
        with pytest.raises(ValueError):
            async with in_transaction() as tx:
                tx.after_commit(partial(rung.append, "rung"))
                raise ValueError
        assert rung == []

    async def test_a_savepoint_rolled_back_forgets_its_own(self, db: EmbeddedClient) -> None:
        rung: list[str] = []
        async with in_transaction() as tx:
            tx.after_commit(partial(rung.append, "kept"))
            with pytest.raises(ValueError):
                async with in_transaction() as part:
                    part.after_commit(partial(rung.append, "by part"))
                    tx.after_commit(partial(rung.append, "by tx"))
                    async with in_transaction() as inner:
                        inner.after_commit(partial(rung.append, "by inner"))
                    raise ValueError
        assert rung == ["kept"]

    async def test_a_failing_callback_hurts_nobody(
        self, db: EmbeddedClient, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rung: list[str] = []
        async with in_transaction() as tx:
            tx.after_commit(lambda: 1 / 0)
            tx.after_commit(partial(rung.append, "rung"))
        assert rung == ["rung"]
        assert "Callback after a commit failed" in capsys.readouterr().out

    async def test_a_task_started_there_writes_on_its_own(self, db: EmbeddedClient) -> None:
        tasks: list[asyncio.Task[Any]] = []

        async def later() -> None:
            assert current_transaction() is None
            await Note.create(text="later")

        async with in_transaction() as tx:
            tx.after_commit(lambda: tasks.append(asyncio.create_task(later())))
        await asyncio.gather(*tasks)
        assert await texts() == ["later"]


MIGRATION = """
from tortoise import fields, migrations
from tortoise.migrations import operations as ops


async def fill(apps, editor):
    await editor.client.execute_query("INSERT INTO shelf (name) VALUES ('filled')")


class Migration(migrations.Migration):
    initial = True
    atomic = {atomic}
    operations = [
        ops.CreateModel(
            name="Shelf",
            fields=[
                ("id", fields.IntField(generated=True, primary_key=True)),
                ("name", fields.CharField(max_length=50)),
            ],
            options={{"table": "shelf", "app": "models", "pk_attr": "id"}},
            bases=["Model"],
        ),
        ops.RunSQL("CREATE INDEX shelf_name ON shelf (name); CREATE TABLE extra (x INT)"),
        ops.RunPython(fill),
        ops.RunSQL("{last}"),
    ]
"""

MODELS = """
from tortoise import Model, fields


class Shelf(Model):
    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=50)

    class Meta:
        table = "shelf"
"""


class TestMigrations:
    async def migrated(self, root: Path, package: str, **migration: Any) -> None:
        """Run one migration on a fresh file; the tables that are there afterwards."""
        (root / package / "migrations").mkdir(parents=True)
        (root / package / "__init__.py").touch()
        (root / package / "models.py").write_text(MODELS)
        (root / package / "migrations" / "__init__.py").touch()
        (root / package / "migrations" / "0001_initial.py").write_text(
            MIGRATION.format(**migration)
        )
        settings = config(root / "x.db", hold_limit=10)
        settings["apps"]["models"] |= {
            "models": [f"{package}.models"],
            "migrations": f"{package}.migrations",
        }
        async with TortoiseContext() as context:
            try:
                await migrate(config=settings)
            finally:
                with sqlite3.connect(root / "x.db") as look:
                    rows = look.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                    self.tables = {name for (name,) in rows} & {"shelf", "extra"}
                look.close()
                await context.close_connections()

    @pytest.mark.parametrize("atomic", [True, False])
    async def test_tortoises_migrations_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        await self.migrated(tmp_path, f"shop_{atomic}", atomic=atomic, last="SELECT 1")
        assert self.tables == {"shelf", "extra"}

    async def test_a_failed_migration_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(OperationalError, match="nowhere"):
            await self.migrated(tmp_path, "shop_failing", atomic=True, last="SELECT * FROM nowhere")
        assert self.tables == set()
