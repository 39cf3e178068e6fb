"""New SQLite databases of the tests as copies: see `agentflow.testing.seeding`. The commands and
roles that tests start as processes migrate as ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tortoise.context import get_current_context

from agentflow.store.database import Database
from agentflow.testing.seeding import seed


@contextmanager
def seeded() -> Iterator[None]:
    """Within the block, whoever opens a new database in this process finds our tables there."""
    whole = Database.open

    async def opened(self: Database, *, migrate: bool = True, check: bool = True) -> None:
        if self.url is None and migrate:
            place = Path(self._config["connections"]["default"]["credentials"]["file_path"])
            if not place.exists() and place.parent.is_dir() and get_current_context() is None:
                await seed(place.parent)
        await whole(self, migrate=migrate, check=check)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "open", opened)
        yield
