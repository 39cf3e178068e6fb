"""Async functions that hold the event loop: nothing else moves meanwhile, heartbeats too, so that
they are found by a thread beside the loop and called by their names."""

from __future__ import annotations

import asyncio
import inspect
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

import structlog

from agentflow.core.providers import Task
from agentflow.telemetry.metrics import OTHER

log = structlog.get_logger(__name__)

EVERY = 0.25
PATIENCE = 1.0
"""Seconds the loop may be held before it is said."""

Told = Callable[[str, float, str], None]
"""`told(task, seconds, place)`, called in the watching thread once the loop is free again."""


class LoopWatch:
    """Watches the loop it is started in."""

    def __init__(self, tasks: Iterable[Task[Any]], told: Told) -> None:
        self._names = dict(_codes(tasks))
        self._told = told
        self._stop, self._answered = threading.Event(), threading.Event()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        threading.Thread(target=self._run, name="agentflow-loop-watch", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            began = time.monotonic()
            self._answered.clear()
            if not self._ask():
                return
            if self._answered.wait(PATIENCE) or (found := self._who()) is None:
                continue
            log.error("A function holds the event loop", task=found[0], at=found[1])
            while not self._answered.wait(EVERY):
                if self._stop.is_set():
                    return
            self._told(found[0], time.monotonic() - began, found[1])

    def _ask(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._answered.set)
        except RuntimeError:  # it is closed
            return False
        return True

    def _who(self) -> tuple[str, str] | None:
        """The task whose function is on the loop's stack, and the line it has come to; `other` with
        the innermost line for another function; None where the loop only waits for its turn."""
        frame: FrameType | None = sys._current_frames().get(self._thread)
        if frame is None or frame.f_code.co_filename == selectors.__file__:
            return None
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        while frame is not None:
            if frame.f_code in self._names:
                at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                return self._names[frame.f_code], at
            frame = frame.f_back
        return OTHER, place


def _codes(tasks: Iterable[Task[Any]]) -> Iterator[tuple[CodeType, str]]:
    for task in tasks:
        for function in (task.function, task.fetcher, task.finder, task.canceler):
            code = getattr(inspect.unwrap(function), "__code__", None) if function else None
            if code is not None:
                yield code, task.name
