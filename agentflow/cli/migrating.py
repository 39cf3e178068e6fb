"""Bringing a database up to date without a server."""

from __future__ import annotations

from tortoise.connection import get_connection
from tortoise.exceptions import BaseORMException

from agentflow.errors import SettingsError, UsageError
from agentflow.settings import Settings
from agentflow.store.database import Database, DirectoryLock, Models
from agentflow.store.sql import Sql

NEXT = """
The roles agentflow_web and agentflow_writer have their rights. Next, give each process its login:
  CREATE ROLE shop_web LOGIN PASSWORD '…' IN ROLE agentflow_web;
  CREATE ROLE shop_writer LOGIN PASSWORD '…' IN ROLE agentflow_writer;
and name these in AGENTFLOW_DATABASE_URL and AGENTFLOW_WRITER_DATABASE_URL."""
"""What is left to do after `--roles`."""


async def migrated(
    settings: Settings, models: Models | None, *, roles: bool = False
) -> tuple[str, list[str]]:
    """Apply what is missing; with `roles`, give PostgreSQL's roles their rights. Returns which
    database this is, in words, and the names of the migrations that were applied.

    Raises `SettingsError` if a server runs on the data directory, the database cannot be reached,
    or the login may not do this, and `UsageError` for roles where there are none.
    """
    database = Database(settings, models or Models(), role="owner")
    if roles and not database.url:
        raise UsageError(
            "--roles is for PostgreSQL: set AGENTFLOW_DATABASE_URL. SQLite has no roles."
        )
    lock = None if database.url else DirectoryLock(settings.data_dir)
    if lock:
        lock.take(" (agentflow migrate)")
    try:
        applied = await _migrated(database, roles)
        return database.place if database.url else str(settings.data_dir / "agentflow.db"), applied
    finally:
        await database.close()
        if lock:
            lock.release()


async def _migrated(database: Database, roles: bool) -> list[str]:
    await database.open(migrate=False, check=False)
    try:
        await Sql(get_connection("default")).rows("SELECT 1")  # raises what others would hide
        applied = await database.migrate()
    except BaseORMException as error:
        if not database.url:
            raise
        raise SettingsError(f"{database.place} cannot be migrated: {_why(error)}") from error
    if roles:
        from agentflow.store.grants import grant_roles  # which needs asyncpg

        await grant_roles()
    return applied


def _why(error: BaseORMException) -> str:
    from asyncpg import InsufficientPrivilegeError

    if not isinstance(error.__cause__, InsufficientPrivilegeError):
        return str(error)
    return (
        f"{error}. This needs the login that owns the tables, in AGENTFLOW_WRITER_DATABASE_URL or,"
        " where that is unset, in AGENTFLOW_DATABASE_URL."
    )
