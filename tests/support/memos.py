"""A database of memos on the SQLite engine, nothing else of agentflow around it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tortoise import fields
from tortoise.context import TortoiseContext
from tortoise.models import Model
from tortoise.transactions import in_transaction

from agentflow.store import sqlite as engine
from agentflow.store.sqlite import EmbeddedClient, Transaction
from support.patience import PATIENCE


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


def db_of(tx: Transaction | None) -> Transaction:
    assert tx is not None
    return tx
