"""What the demo shows while it runs: bars at a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from agentflow.client import Event

STYLES = {"succeeded": "green", "failed": "red", "canceled": "yellow", "expired": "red"}

_NOTES = {
    "submitted": "",
    "started": "calling Replicate",
    "accepted": "Replicate works on it",
    "retry:rate_limited": "429 Too Many Requests: waiting",
    "retry:provider_error": "failed in passing: once more",
    "submit_unknown": "connection lost: was it made?",
    "found": "found again",
    "cancel_requested": "asking Replicate to stop",
    "collecting": "copying the files",
}


def note(event: Event) -> str | None:
    """A line for people; None for what is not worth one."""
    if event.disposition == "ignored" or event.event in ("progressed", "woke"):
        return None
    known = _NOTES.get(event.reason)
    if event.reason == "found":
        return f"{known} by {'its webhook' if event.source == 'webhook' else 'looking for it'}"
    if event.event == "succeeded":
        return f"result by {event.source}"
    return known if known is not None else event.reason.replace("_", " ").replace(":", ": ")


class Board(Protocol):
    """Thread-safe: every job's follower tells it what it hears."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def tell(self, index: int, event: Event) -> None: ...


def board(console: Console, names: Sequence[str]) -> Board:
    return Bars(console, names) if console.is_terminal else Lines(console, names)


class Lines:
    """`  3.1 s  webhooks lost  succeeded  result by poll`"""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console, self._names = console, names
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell(self, index: int, event: Event) -> None:
        said = note(event)
        if said:
            passed = time.monotonic() - self._began
            name = self._names[index]
            self._console.print(
                f"{passed:5.1f} s  {name:24}{event.status:11}{said}",
                highlight=False,
                soft_wrap=True,
            )


class Bars:
    """One row per job: name, bar, status, what happened last."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        said = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            _Bar(),
            _Status(),
            TextColumn("{task.fields[note]}", style="dim", table_column=said),
            console=console,
            expand=True,
        )
        self._rows = [self._add(name) for name in names]

    def _add(self, name: str) -> TaskID:
        return self._progress.add_task(name, total=1.0, status="queued", note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, index: int, event: Event) -> None:
        row = self._rows[index]
        said = note(event)
        if said is not None:
            self._progress.update(row, note=said)
        if event.disposition == "ignored":
            return
        if event.event == "started":
            self._progress.update(row, completed=0.0)
        if event.progress is not None:
            self._progress.update(row, completed=event.progress)
        if event.status == "succeeded":
            self._progress.update(row, completed=1.0)
        self._progress.update(row, status=event.status)


class _Bar(ProgressColumn):
    def render(self, task: Task) -> RenderableType:
        style = STYLES.get(task.fields["status"], "cyan")
        done = task.completed
        return ProgressBar(
            1.0, done, width=18, complete_style=style, finished_style=style, style="grey23"
        )


class _Status(ProgressColumn):
    def render(self, task: Task) -> RenderableType:
        status = task.fields["status"]
        return Text(f"{status:10}", style=STYLES.get(status, "cyan"))
