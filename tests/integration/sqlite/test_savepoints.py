"""Savepoints on SQLite: a part is undone alone."""

# ruff: noqa: PT012 - what raises is often the end of the block itself

import asyncio
from functools import partial

import pytest
from support.memos import LONG_STATEMENT, Note, behind, db_of, free, texts
from tortoise.exceptions import OperationalError, TransactionManagementError
from tortoise.transactions import atomic, in_transaction

from agentflow.errors import UsageError
from agentflow.store import sqlite as engine
from agentflow.store.sqlite import EmbeddedClient, current_transaction

DATABASES = ("sqlite",)


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
