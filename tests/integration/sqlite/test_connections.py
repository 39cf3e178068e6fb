"""The connections of the SQLite engine: the one that writes, the one that reads, a stranger's."""

# ruff: noqa: PT012 - what raises is often the end of the block itself

import asyncio
import gc
import sqlite3
from pathlib import Path

import pytest
from support.memos import Note, config, free, opened, pragma, texts
from support.patience import PATIENCE
from tortoise.context import TortoiseContext
from tortoise.exceptions import IntegrityError, OperationalError
from tortoise.transactions import in_transaction

from agentflow.errors import UsageError
from agentflow.store import sqlite as engine
from agentflow.store.sqlite import EmbeddedClient

DATABASES = ("sqlite",)


async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
    async with in_transaction():
        await Note.create(text="held")
        entered.set()
        await leave.wait()


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
        task = asyncio.create_task(hold(entered, leave))
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
        task = asyncio.create_task(hold(entered, leave))
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
