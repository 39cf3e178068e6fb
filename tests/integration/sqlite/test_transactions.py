"""Transactions on SQLite: stored or undone, never lost, whoever is canceled or late."""

# ruff: noqa: PT012 - what raises is often the end of the block itself

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.memos import LONG_STATEMENT, Note, free, occupy, opened, texts
from support.patience import PATIENCE
from tortoise.exceptions import IntegrityError, OperationalError, TransactionManagementError
from tortoise.transactions import atomic, in_transaction

from agentflow.errors import UsageError
from agentflow.store.sqlite import EmbeddedClient, Transaction, current_transaction, hold_limit

DATABASES = ("sqlite",)


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
        assert time.monotonic() - began < PATIENCE
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
                await asyncio.sleep(0.15)
                await Note.create(text=f"{n}")

        with hold_limit(0.6):
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
