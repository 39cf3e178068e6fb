"""Opening the database: the data directory's lock, the connection, the migrations."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from tortoise.backends.base.executor import EXECUTOR_CACHE
from tortoise.connection import get_connection
from tortoise.context import TortoiseContext, get_current_context
from tortoise.exceptions import BaseORMException
from tortoise.migrations.executor import MigrationExecutor
from tortoise.migrations.recorder import MigrationRecorder

from agentflow.errors import SettingsError, UsageError
from agentflow.settings import Settings
from agentflow.store.sql import Sql
from agentflow.store.tables import create_missing_tables
from agentflow.store.transactions import hold_limit
from agentflow.types import JsonObject

CORE_APP: JsonObject = {
    "models": ["agentflow.store.models"],
    "default_connection": "default",
    "migrations": "agentflow.store.migrations",
}

MIGRATION_LOCK = 0x61676E74
"""Key of the advisory lock under which PostgreSQL is migrated: the letters agnt."""

_IN_USE = (
    "Tortoise is set up in this process already, by another AgentFlow or by code of yours, and a"
    " model can only have one database. Run one AgentFlow per process, and instead of calling"
    " Tortoise.init() or RegisterTortoise, give it your configuration: AgentFlow(tortoise=...)."
)


class DirectoryLock:
    """One process per data directory: SQLite has one writer, and so has agentflow here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "lock"
        self._file: int | None = None

    def take(self, note: str = "") -> None:
        """Raise `SettingsError`, with the way out, if another process holds the directory."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._file is not None:
            return
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise SettingsError(
                f"{self._path.parent} is in use by {holder}. Talk to it over HTTP (the agentflow"
                " commands do), stop it, or choose another directory with --data or"
                " AGENTFLOW_DATA_DIR."
            ) from None
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()}{note}".encode())
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def free_directory(parent: Path, name: str) -> DirectoryLock:
    """The first of `name-1`, `name-2`, … in `parent` that no process holds, taken."""
    for number in range(1, 1000):
        lock = DirectoryLock(parent / f"{name}-{number}")
        with contextlib.suppress(SettingsError):
            lock.take()
            return lock
    raise SettingsError(f"{parent} is used by a thousand processes")


@dataclass(frozen=True, slots=True)
class Models:
    """The application's own models beside ours: modules, and their migrations if they have any."""

    modules: Sequence[str] = ()
    migrations: str | None = None
    apps: Mapping[str, Any] | None = None
    """The `apps` of an existing Tortoise configuration; used as they are, on our connection."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what would hide a part of it."""
        if self.apps and "agentflow" in self.apps:
            raise UsageError("tortoise: the label agentflow is taken: call your app otherwise")
        if self.apps and self.modules:
            raise UsageError("Give `models`, or a Tortoise configuration that names them: not both")

    def configured(self) -> dict[str, JsonObject]:
        apps: dict[str, JsonObject] = {}
        for label, app in (self.apps or {}).items():
            apps[label] = {**app, "default_connection": "default"}
        if self.modules:
            own: JsonObject = {"models": list(self.modules), "default_connection": "default"}
            apps["models"] = own | ({"migrations": self.migrations} if self.migrations else {})
        return apps


class Database:
    """SQLite in the data directory, or PostgreSQL where `AGENTFLOW_DATABASE_URL` says so.

    `role` picks the login: `writer` also migrates, `web` and `reader` take what is there. `owner`
    is the writer's login for `agentflow migrate`, whose statements may take their time.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        *,
        role: Literal["writer", "web", "reader", "owner"] = "writer",
    ) -> None:
        self.url = settings.database(role)
        self._context: TortoiseContext | None = None
        self._config: dict[str, Any] = {
            "connections": {"default": postgres(self.url, settings, role) if self.url
                            else embedded(settings)},
            "apps": {"agentflow": CORE_APP, **models.configured()},
            "use_tz": True,
            "timezone": "UTC",
        }  # fmt: skip

    async def open(self, *, migrate: bool = True, check: bool = True) -> None:
        """Connect, and bring every schema up to date, or see that it is. Raises `SettingsError`
        where Tortoise is in use (it finds a model's connection by one global set-up), where the
        database cannot be reached, and for a schema that is behind."""
        if get_current_context() is not None:
            raise SettingsError(_IN_USE)
        # It keeps statements by the table's name, in the dialect of whoever asked first.
        EXECUTOR_CACHE.clear()
        context = TortoiseContext()
        with context:
            await context.init(config=self._config, _enable_global_fallback=True)
        self._context = context
        try:
            with hold_limit(None):
                if migrate:
                    await self.migrate()
                elif check:
                    await self.check()
        except BaseORMException as error:
            if not self.url:
                raise
            raise SettingsError(f"{self.place} cannot be used: {error}") from error

    async def close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            await context.close_connections()

    @property
    def place(self) -> str:
        """The database in words, without a password."""
        parts = urlsplit(self.url or "")
        return f"The database at {parts.hostname}:{parts.port or 5432}{parts.path}"

    async def migrate(self) -> list[str]:
        """Migrations where an app has them; missing tables of the others are created. Returns the
        names of the migrations that were applied."""
        connection: Any = get_connection("default")
        if self.url:
            async with _only_one(connection):
                return await self._migrate(connection)
        # Altering a column rebuilds its table, and with foreign keys on the DROP in it deletes
        # every row that refers to one of the table's.
        await connection.execute_script("PRAGMA foreign_keys = OFF")
        try:
            return await self._migrate(connection)
        finally:
            await connection.execute_script("PRAGMA foreign_keys = ON")

    async def check(self) -> None:
        """Raise `SettingsError` if a migration of ours, or of the application, is missing."""
        missing = await self.missing()
        if missing:
            raise SettingsError(
                f"The schema is behind: {', '.join(missing)} is not applied. Run: agentflow migrate"
            )

    async def missing(self) -> list[str]:
        """The migrations that are not applied yet, in order."""
        executor = MigrationExecutor(get_connection("default"), self._managed())
        await executor.loader.build_graph()
        try:
            applied = await _applied()
        except BaseORMException:  # there is no such table yet
            applied = []
        known = [f"{key.app_label}.{key.name}" for key in executor.loader.graph.nodes]
        return [name for name in sorted(known) if name not in applied]

    def _managed(self) -> dict[str, Any]:
        return {k: app for k, app in self._config["apps"].items() if app.get("migrations")}

    async def _migrate(self, connection: Any) -> list[str]:
        managed = self._managed()
        executor = MigrationExecutor(connection, managed)
        await MigrationRecorder(connection).ensure_schema(executor._schema_editor(atomic=False))
        before = await _applied()
        await executor.migrate(None)
        if len(managed) < len(self._config["apps"]):
            await create_missing_tables(connection)
        return [name for name in await _applied() if name not in before]


def embedded(settings: Settings) -> JsonObject:
    """The connection to the SQLite file of the data directory."""
    return {
        "engine": "agentflow.store.sqlite",
        "credentials": {
            "file_path": str(settings.data_dir / "agentflow.db"),
            "synchronous": settings.synchronous,
            "hold_limit": settings.transaction_limit,
        },
    }


def postgres(url: str, settings: Settings, role: str) -> JsonObject:
    """The connection to PostgreSQL. Raises `SettingsError` for a URL's query that says nothing.

    A plan that was made when the tables were empty must not be kept for a million rows, so plans
    are made for the values at hand. Locks and forgotten transactions are not waited for long; only
    the owner, who migrates, may take as long as an index of millions of rows.
    """
    parts, patient = urlsplit(url), role == "owner"
    idle = max(settings.transaction_limit, settings.handler_timeout + 3.0)
    return {
        "engine": "agentflow.store.postgres_asyncpg",
        "credentials": {
            "host": parts.hostname,
            "port": parts.port or 5432,
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password) if parts.password else None,
            "database": parts.path.lstrip("/"),
            "minsize": 0,
            "maxsize": 10,
            "timeout": 10,
            "command_timeout": None if patient else 30,
            "hold_limit": settings.transaction_limit,
            "server_settings": {
                "application_name": f"agentflow {role}",
                "plan_cache_mode": "force_custom_plan",
                "lock_timeout": "2s",
                "statement_timeout": "0" if patient else "15s",
                "idle_in_transaction_session_timeout": f"{idle:g}s",
                "tcp_keepalives_idle": "15",
            },
            **_options(parts.query),
        },
    }


_NUMBERS = {"minsize", "maxsize", "statement_cache_size", "timeout", "command_timeout"}


def _options(query: str) -> JsonObject:
    """What follows the `?` of a URL. Raises `SettingsError` for what asyncpg has no word for."""
    options: JsonObject = {}
    for name, value in parse_qsl(query):
        if name in ("ssl", "sslmode"):
            options["ssl"] = value
        elif name in _NUMBERS and value.isdigit():
            options[name] = int(value)
        else:
            raise SettingsError(
                f"AGENTFLOW_DATABASE_URL: {name}={value} is not understood. A URL may have sslmode"
                f" and, as whole numbers, {', '.join(sorted(_NUMBERS))}."
            )
    return options


@asynccontextmanager
async def _only_one(connection: Any) -> AsyncIterator[None]:
    """Hold the advisory lock in a session of its own: whoever comes second waits, then finds
    nothing left to do."""
    pool = await connection.opened()
    holder = await pool.acquire()
    try:
        await holder.execute("SET statement_timeout = 0; SET lock_timeout = 0")
        await holder.fetch("SELECT pg_advisory_lock($1)", MIGRATION_LOCK, timeout=600)
        yield
    finally:
        # A session that ends gives its locks back.
        holder.terminate()
        await pool.release(holder)


async def _applied() -> list[str]:
    rows = await Sql(get_connection("default")).rows(
        'SELECT "app", "name" FROM "tortoise_migrations" ORDER BY "id"'
    )
    return [f"{row['app']}.{row['name']}" for row in rows]
