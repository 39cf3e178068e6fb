"""Checks that need an event loop, without a plugin of pytest for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 60.0
"""Seconds one check may take."""


def in_loop(check: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The async check as a plain one, in a loop of its own. `__wrapped__` keeps its arguments
    visible to pytest."""

    async def limited(*args: Any, **named: Any) -> None:
        async with asyncio.timeout(LONGEST):
            await check(*args, **named)

    @wraps(check)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(limited(*args, **named))

    return run


async def until(
    look: Callable[[], Awaitable[T]], enough: Callable[[T], object], seconds: float, what: str
) -> T:
    """What `look` gives once it is enough. Raises `AssertionError` when the time is up."""
    ends = asyncio.get_running_loop().time() + seconds
    while not enough(found := await look()):
        if asyncio.get_running_loop().time() > ends:
            raise AssertionError(f"{what} after {seconds:g} s")
        await asyncio.sleep(0.02)
    return found
