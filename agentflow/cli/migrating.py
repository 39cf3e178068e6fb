"""Bringing a database up to date without a server."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from agentflow.settings import Settings
from agentflow.store.database import Database, DirectoryLock, Models


async def migrated(settings: Settings, models: Models | None) -> list[str]:
    """Apply what is missing and name it. Raises `SettingsError` if a server runs there."""
    lock = DirectoryLock(settings.data_dir)
    lock.take(" (agentflow migrate)")
    try:
        file = settings.data_dir / "agentflow.db"
        before = applied(file)
        database = Database(
            file,
            models or Models(),
            synchronous=settings.synchronous,
            transaction_limit=settings.transaction_limit,
        )
        try:
            await database.open()
        finally:
            await database.close()
        return [name for name in applied(file) if name not in before]
    finally:
        lock.release()


def applied(file: Path) -> list[str]:
    """The migrations recorded in a database, in the order they were applied."""
    if not file.exists():
        return []
    with closing(sqlite3.connect(file)) as connection:
        known = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'tortoise_migrations'"
        ).fetchall()
        if not known:
            return []
        rows = connection.execute("SELECT app, name FROM tortoise_migrations ORDER BY id")
        return [f"{app}.{name}" for app, name in rows]
