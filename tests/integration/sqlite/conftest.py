"""The SQLite engine, one test or more for each trap of Tortoise's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.memos import opened

from agentflow.store.sqlite import EmbeddedClient


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[EmbeddedClient]:
    async with opened(tmp_path / "notes.db") as client:
        yield client
