"""`agentflow migrate` beside roles that run: an upgrade without downtime begins with it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
from support.servers import Postgres
from tortoise.connection import get_connection

from agentflow.cli.migrating import migrated
from agentflow.settings import load_settings
from agentflow.store.database import Database, Models
from agentflow.store.sql import Sql

DATABASES = ("postgres",)

SHOP = Models(["support.shop.models"])
"""Without migrations: its tables are created where they are missing."""


@pytest.fixture
async def migrated_before(database: str, tmp_path: Path) -> str:
    await migrated(load_settings(data_dir=tmp_path), SHOP)
    return database


async def test_what_is_up_to_date_waits_for_nobody_who_writes(
    migrated_before: str, tmp_path: Path, postgres: Postgres
) -> None:
    async with AsyncExitStack() as stack:
        busy = await asyncpg.connect(migrated_before)
        stack.push_async_callback(busy.close)
        await stack.enter_async_context(busy.transaction())
        tables = postgres.sql(
            "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables"
            " WHERE schemaname = 'public'",
            migrated_before.rpartition("/")[2],
        )
        assert "note" in tables
        assert "agentflow_jobs" in tables
        await busy.execute(f"LOCK TABLE {tables} IN ROW EXCLUSIVE MODE")  # as an INSERT does
        assert (await migrated(load_settings(data_dir=tmp_path), SHOP))[1] == []


async def test_a_missing_table_is_created_beside_those_that_are_there(
    migrated_before: str, tmp_path: Path, postgres: Postgres
) -> None:
    name = migrated_before.rpartition("/")[2]
    postgres.sql("DROP TABLE note", name)
    await migrated(load_settings(data_dir=tmp_path), SHOP)
    postgres.sql("INSERT INTO note (text) VALUES ('there')", name)
    assert postgres.sql("SELECT text FROM note", name) == "there"


@pytest.mark.usefixtures("database")
async def test_a_migration_may_take_as_long_as_it_needs_but_not_wait_for_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of millions of rows takes longer than any statement of a role may."""
    shown = {}

    async def migrate(_: Database) -> list[str]:
        for name in ("statement_timeout", "lock_timeout"):
            (row,) = await Sql(get_connection("default")).rows(f"SHOW {name}")
            shown[name] = row[name]
        return []

    monkeypatch.setattr(Database, "migrate", migrate)
    await migrated(load_settings(data_dir=tmp_path), None)
    assert shown == {"statement_timeout": "0", "lock_timeout": "2s"}
