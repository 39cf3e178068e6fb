"""The broker of Redis streams: read, settled, taken over; whatever Redis goes through."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from support.streams import Bench, bench

from agentflow.transport.redis_link import Link, connect


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Link]:
    link = connect(redis_url)
    yield link
    await link.aclose()


@pytest_asyncio.fixture
async def one(redis_url: str) -> AsyncIterator[Bench]:
    async with bench(redis_url) as made:
        yield made
