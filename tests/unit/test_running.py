"""How a worker runs a plugin's functions."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from agentflow.worker.running import load

SLOW = """
import threading, time
time.sleep(0.5)
THREAD = threading.current_thread()
"""


async def test_a_slow_import_lets_the_loop_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_sdk.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    began = time.monotonic()
    await load("slow_sdk")
    assert time.monotonic() - began >= 0.5
    assert turns > 1
    turning.cancel()
    monkeypatch.delitem(sys.modules, "slow_sdk")


async def test_what_cannot_be_imported_is_left_for_the_function_to_say() -> None:
    await load("no_such_module_at_all")
    await load(None)
