"""Running a plugin's code at the start, with a limit to how long the others wait for it."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from agentflow.errors import PluginError, SettingsError

T = TypeVar("T")

LIMIT = 10.0
"""Seconds a plugin may take to load, and again to read its settings."""

LONGEST = 500


def patiently(function: Callable[[], T], limit: float | None = None) -> T:
    """What the function returns, run in a thread. Raises `PluginError` where it is still busy after
    the limit (the thread stays behind), what it raises of `PluginError` and `SettingsError`, and
    for all else a `PluginError` with the place: for an exit of the interpreter too."""
    work = _Work(function)
    work.start()
    work.join(LIMIT if limit is None else limit)
    if work.is_alive():
        frame = sys._current_frames().get(work.ident or 0)
        stack = traceback.extract_stack(frame) if frame else []
        raise PluginError(f"is still busy after {limit or LIMIT:g} s, at {_place(stack)}")
    if isinstance(work.error, PluginError | SettingsError):
        raise work.error
    if work.error is not None:
        at = _place(traceback.extract_tb(work.error.__traceback__))
        raise PluginError(f"{spoken(work.error)} ({at})") from work.error
    return work.returned[0]


def spoken(error: BaseException) -> str:
    """An error in a line, whatever its text does."""
    try:
        return f"{type(error).__name__}: {error}"[:LONGEST]
    except Exception:
        return type(error).__name__


class _Work(threading.Thread, Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(name="agentflow-plugin", daemon=True)
        self._function = function
        self.returned: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.returned.append(self._function())
        except BaseException as error:  # a stranger's module may do anything, end the process too
            self.error = error


def _place(stack: list[traceback.FrameSummary] | traceback.StackSummary) -> str:
    """The innermost place that is not Python's own import machinery."""
    frames = [f for f in stack if not f.filename.startswith("<frozen")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
