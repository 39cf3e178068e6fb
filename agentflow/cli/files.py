"""What `agentflow doctor` finds out about the place where the files live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from agentflow.cli.finding import Finding

if TYPE_CHECKING:
    from agentflow.settings import Settings


def files(settings: Settings) -> Iterator[Finding]:
    """Where they are not in the data directory, which was looked at."""
    if settings.artifacts_url or settings.artifacts_dir:
        yield asyncio.run(_files(settings))


async def _files(settings: Settings) -> Finding:
    """As this process will use it: the web only reads."""
    from agentflow.artifacts import artifact_store
    from agentflow.errors import AgentflowError
    from agentflow.types import new_id

    place = settings.artifacts_url or str(settings.artifacts_dir)
    probe = new_id("agentflow-check")
    try:
        store = artifact_store(settings)
        await store.start()
        await store.size(probe)
        if settings.mode == "web":
            return Finding("files", "ok", f"{place} can be read")
        await store.put(probe, _one(), max_bytes=1)
        same = [chunk async for chunk in await store.open(probe)] == [b"x"]
        await store.delete(probe)
    except AgentflowError as error:
        return Finding("files", "fail", str(error))
    if not same:
        return Finding("files", "fail", f"{place} gives back something else than it was given")
    return Finding("files", "ok", f"{place} can be read and written")


async def _one() -> AsyncIterator[bytes]:
    yield b"x"
