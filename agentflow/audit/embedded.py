"""The embedded database opened for reading only, beside whoever writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite

from agentflow.audit.reading import Snapshots, job_page
from agentflow.errors import SettingsError
from agentflow.store.sql import Sql


class FileSql(Sql):
    """Statements for a file that Tortoise knows nothing of: it may be another process's."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.postgres = False
        self._file = connection

    async def rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._file.execute_fetchall(query, list(values))]


@asynccontextmanager
async def snapshots_of(file: Path) -> AsyncIterator[Snapshots]:
    """In WAL a reader sees one moment as long as its transaction lasts and stops no writer.

    Raises `SettingsError` if there is no database of agentflow.
    """
    async with aiosqlite.connect(_address(file), uri=True, isolation_level=None) as connection:
        connection.row_factory = sqlite3.Row

        @asynccontextmanager
        async def snapshot() -> AsyncIterator[Sql]:
            await connection.execute("BEGIN")
            try:
                yield FileSql(connection)
            finally:
                await connection.rollback()

        try:
            await job_page(FileSql(connection), "~")
        except sqlite3.DatabaseError as error:
            raise SettingsError(
                f"{file} is no database of this version of agentflow ({error}). To bring an older"
                " one up to date: agentflow migrate"
            ) from None
        yield snapshot


def _address(file: Path) -> str:
    if not file.is_file():
        raise SettingsError(f"There is no database {file}. Name its directory with --data.")
    return f"{file.absolute().as_uri()}?mode=ro"
