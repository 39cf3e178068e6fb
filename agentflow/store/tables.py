"""The tables of models that have no migrations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tortoise.backends.base.client import BaseDBAsyncClient

from agentflow.store.sql import Sql

_BEGIN = re.compile(r"^(?=CREATE TABLE )", re.M)
_NAME = re.compile(r'CREATE TABLE IF NOT EXISTS ("[^"]+"(?:\."[^"]+")?)')


async def create_missing_tables(connection: BaseDBAsyncClient) -> None:
    """Create what is missing, with its indexes. What is there stays as it is.

    On PostgreSQL that is not even named: `CREATE INDEX IF NOT EXISTS` locks the table before it
    looks, and a script of several would meet the roles that run in a deadlock.
    """
    generator: Any = connection.schema_generator(connection)
    before, *tables = _BEGIN.split(generator.get_create_schema_sql(safe=True))
    there = await _there(Sql(connection), [_name(table) for table in tables])
    missing = [table for table in tables if _name(table) not in there]
    if missing:
        await generator.generate_from_string("".join([before, *missing]))


def _name(table: str) -> str:
    """As it is quoted in the statement that creates it."""
    found = _NAME.match(table)
    assert found is not None, table
    return found[1]


async def _there(sql: Sql, names: Sequence[str]) -> set[str]:
    """On SQLite none is looked for: nobody else is there."""
    if not sql.postgres:
        return set()
    rows = await sql.rows(
        "SELECT name FROM unnest($1::text[]) AS t(name) WHERE to_regclass(name) IS NOT NULL",
        [list(names)],
    )
    return {row["name"] for row in rows}
