"""Bringing a database up to date without a server."""

from __future__ import annotations

from agentflow.settings import Settings
from agentflow.store.database import Database, DirectoryLock, Models


async def migrated(settings: Settings, models: Models | None) -> list[str]:
    """Apply what is missing and name it. Raises `SettingsError` if a server runs on the data
    directory, or the database cannot be reached."""
    database = Database(settings, models or Models())
    lock = None if database.url else DirectoryLock(settings.data_dir)
    if lock:
        lock.take(" (agentflow migrate)")
    try:
        await database.open(migrate=False, check=False)
        return await database.migrate()
    finally:
        await database.close()
        if lock:
            lock.release()
