"""PostgreSQL read for an audit, beside the processes that write it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tortoise.transactions import in_transaction

from agentflow.audit.reading import Snapshots
from agentflow.settings import Settings
from agentflow.store.database import Database, Models
from agentflow.store.sql import Sql
from agentflow.store.transactions import hold_limit


@asynccontextmanager
async def snapshots_of_server(settings: Settings) -> AsyncIterator[Snapshots]:
    """Raises `SettingsError` if it cannot be reached, or its schema is not of this version."""
    database = Database(settings, Models(), role="reader")
    await database.open(migrate=False)
    try:
        yield _snapshot
    finally:
        await database.close()


@asynccontextmanager
async def _snapshot() -> AsyncIterator[Sql]:
    with hold_limit(None):
        async with in_transaction() as tx:
            sql = Sql(tx)
            await sql.rows("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            await sql.rows("SET LOCAL statement_timeout = 0")
            yield sql
