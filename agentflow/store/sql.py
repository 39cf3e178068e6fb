"""The few places where SQL differs between databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from tortoise.backends.base.client import BaseDBAsyncClient

from agentflow.clock import Clock
from agentflow.store.rows import dumps


class Sql:
    """Statements for one connection's dialect; values are always parameters."""

    def __init__(self, connection: BaseDBAsyncClient) -> None:
        self.connection = connection
        self.postgres = connection.capabilities.dialect == "postgres"

    def mark(self, position: int) -> str:
        """The placeholder of the parameter at `position`, counted from 1."""
        return f"${position}" if self.postgres else "?"

    def among(self, column: str, position: int, type: str = "text") -> str:
        """`column` is one of the values of the parameter made by `array`."""
        if self.postgres:
            return f"{column} = ANY(${position}::{type}[])"
        return f"{column} IN (SELECT value FROM json_each(?))"

    @property
    def locking(self) -> str:
        """Follows a SELECT in a transaction: lock what is found, and leave out what another
        writer holds. SQLite's writer is alone."""
        return " FOR UPDATE SKIP LOCKED" if self.postgres else ""

    def locking_of(self, table: str) -> str:
        """The same, where only one table of several is to be locked."""
        return f" FOR UPDATE OF {table} SKIP LOCKED" if self.postgres else ""

    async def now(self, clock: Clock) -> datetime:
        """The time of the database, by which `clock` is set; the machine's, where both are one."""
        if not self.postgres:
            return clock.now()
        rows = await self.rows("SELECT clock_timestamp() AS now")
        return clock.follow(rows[0]["now"])

    def array(self, values: Iterable[Any]) -> Any:
        return list(values) if self.postgres else dumps(list(values))

    async def rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return await self.connection.execute_query_dict(query, list(values))

    async def insert(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        on_conflict: str = "",
    ) -> None:
        """One statement for all rows; `on_conflict` is what follows the values."""
        if not rows:
            return
        marks = ", ".join(self.mark(i + 1) for i in range(len(columns)))
        names = ", ".join(f'"{c}"' for c in columns)
        query = f'INSERT INTO "{table}" ({names}) VALUES ({marks}) {on_conflict}'
        await self.connection.execute_many(query, [list(row) for row in rows])

    async def update(
        self, table: str, columns: Sequence[str], keys: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Each row holds the new values of `columns` and then those of `keys`."""
        if not rows:
            return
        sets = ", ".join(f'"{c}" = {self.mark(i + 1)}' for i, c in enumerate(columns))
        where = " AND ".join(
            f'"{k}" = {self.mark(len(columns) + i + 1)}' for i, k in enumerate(keys)
        )
        query = f'UPDATE "{table}" SET {sets} WHERE {where}'
        await self.connection.execute_many(query, [list(row) for row in rows])
