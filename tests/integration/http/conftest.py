"""One server per module: jobs do not get in each other's way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from support.web import World, world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(
    tmp_path_factory: pytest.TempPathFactory, module_database: str | None
) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("http")) as running:
        yield running
