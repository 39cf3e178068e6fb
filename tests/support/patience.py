"""How long a test waits for what should come at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

PATIENCE = 20.0
"""Seconds: enough on a machine whose processors others keep busy, and less than the half minute
after which the alarms repeat what was lost on the way, so that such a loss is still seen."""


async def until(true: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait for that; what is awaitable is awaited each time."""
    async with asyncio.timeout(seconds):
        while True:
            said = true()
            if await said if asyncio.iscoroutine(said) else said:
                return
            await asyncio.sleep(0.01)
