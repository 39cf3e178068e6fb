"""Opening the database: the data directory's lock, the connection, the migrations."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortoise import Tortoise
from tortoise.connection import get_connection
from tortoise.context import TortoiseContext, get_current_context
from tortoise.migrations.executor import MigrationExecutor

from agentflow.errors import SettingsError, UsageError
from agentflow.store.sqlite import hold_limit
from agentflow.types import JsonObject

CORE_APP: JsonObject = {
    "models": ["agentflow.store.models"],
    "default_connection": "default",
    "migrations": "agentflow.store.migrations",
}


_IN_USE = (
    "Tortoise is set up in this process already, by another AgentFlow or by code of yours, and a"
    " model can only have one database. Run one AgentFlow per process, and instead of calling"
    " Tortoise.init() or RegisterTortoise, give it your configuration: AgentFlow(tortoise=...)."
)


class DirectoryLock:
    """One process per data directory: SQLite has one writer, and so has agentflow here."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._file: int | None = None

    def take(self, note: str = "") -> None:
        """Raise `SettingsError`, with the way out, if another process holds the directory."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
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
    """The embedded database: one SQLite file, one process."""

    def __init__(
        self, file: Path | str, models: Models, *, synchronous: str, transaction_limit: float
    ) -> None:
        self._own_apps = models.configured()
        self._context: TortoiseContext | None = None
        self._config: dict[str, Any] = {
            "connections": {
                "default": {
                    "engine": "agentflow.store.sqlite",
                    "credentials": {
                        "file_path": str(file),
                        "synchronous": synchronous,
                        "hold_limit": transaction_limit,
                    },
                }
            },
            "apps": {"agentflow": CORE_APP, **self._own_apps},
            "use_tz": True,
            "timezone": "UTC",
        }

    async def open(self) -> None:
        """Connect and bring every schema up to date. Raises `SettingsError` where Tortoise is
        in use: it finds a model's connection by one global set-up."""
        if get_current_context() is not None:
            raise SettingsError(_IN_USE)
        context = TortoiseContext()
        with context:
            await context.init(config=self._config, _enable_global_fallback=True)
        self._context = context
        with hold_limit(None):
            await self._migrate()

    async def close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            await context.close_connections()

    async def _migrate(self) -> None:
        """Migrations where an app has them; missing tables of the others are created."""
        apps = self._config["apps"]
        managed = {label: app for label, app in apps.items() if app.get("migrations")}
        connection = get_connection("default")
        # Altering a column rebuilds its table, and with foreign keys on the DROP in it deletes
        # every row that refers to one of the table's.
        await connection.execute_script("PRAGMA foreign_keys = OFF")
        try:
            await MigrationExecutor(connection, managed).migrate(None)
        finally:
            await connection.execute_script("PRAGMA foreign_keys = ON")
        if len(managed) < len(apps):
            await _create_missing_tables()


async def _create_missing_tables() -> None:
    """For the application's models without migrations; ours are there already and stay."""
    with contextlib.suppress(StopAsyncIteration):
        await Tortoise.generate_schemas(safe=True)
