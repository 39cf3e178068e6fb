"""A new embedded database as a copy of one that was migrated before: to migrate takes longer than
most tests."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

from agentflow.settings import Settings
from agentflow.store.database import Database, Models

FILE = "agentflow.db"

_NOBODYS = "AGENTFLOW_OF_NOBODY_"
"""Variables with this prefix do not exist."""

_open = Database.open  # whatever tests make of it later


async def seed(folder: Path) -> None:
    """Put a database with our tables, and nothing in them, into the folder; whoever opens it finds
    only migrations of the application's own to do. Tortoise must not be in use."""
    first = Path(_first().name)
    if not (first / FILE).exists():
        making = first / "making"  # so that what is interrupted is never copied
        making.mkdir(exist_ok=True)
        database = Database(
            Settings(_env_prefix=_NOBODYS, data_dir=making, synchronous="NORMAL"),  # type: ignore[call-arg]  # of pydantic-settings
            Models(),
        )
        await _open(database)
        await database.close()
        (making / FILE).replace(first / FILE)
    shutil.copyfile(first / FILE, folder / FILE)


@cache
def _first() -> tempfile.TemporaryDirectory[str]:
    """Deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="agentflow-seed-")
