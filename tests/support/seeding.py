"""A new SQLite database as a copy of one that was migrated before: migrating takes longer than
most tests. The commands and roles that tests start as processes migrate as ever."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tortoise.context import get_current_context

from agentflow.settings import Settings
from agentflow.store.database import Database, Models


@contextmanager
def seeded() -> Iterator[None]:
    """Within the block, whoever opens a new database in this process finds our tables there."""
    whole, first = Database.open, Path(tempfile.mkdtemp(prefix="agentflow-seed-"))

    async def seed() -> Path:
        file = first / "agentflow.db"
        if not file.exists():
            settings = Settings(data_dir=first, database_url=None, synchronous="NORMAL")
            database = Database(settings, Models())
            await whole(database)
            await database.close()
        return file

    async def opened(self: Database, *, migrate: bool = True, check: bool = True) -> None:
        if self.url is None and migrate:
            place = Path(self._config["connections"]["default"]["credentials"]["file_path"])
            if not place.exists() and place.parent.is_dir() and get_current_context() is None:
                shutil.copyfile(await seed(), place)
        await whole(self, migrate=migrate, check=check)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "open", opened)
        yield
    shutil.rmtree(first)
