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

_ROUTINE = {
    "started": "calling Replicate",
    "accepted": "Replicate works on it",
    "collecting": "copying the files",
}
_NOTABLE = {
    "retry:rate_limited": "was told to wait (429)",
    "retry:provider_error": "failed once, in passing",
    "submit_unknown": "connection lost: was it made?",
    "cancel_requested": "Replicate was asked to stop",
    "failed:content_rejected": "Replicate refused the content",
}


def routine(event: Event) -> str | None:
    """A line for people about what always happens."""
    return _ROUTINE.get(event.reason) if event.disposition == "applied" else None


def notable(event: Event) -> str | None:
    """A line for people about what does not always happen."""
    if event.disposition == "ignored" or event.event == "woke":
        return None
    if event.reason == "found":
        return f"found again by {'its webhook' if event.source == 'webhook' else 'asking for it'}"
    if event.event == "succeeded" and event.source == "poll":
        return "result found by polling"
    return _NOTABLE.get(event.reason)


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
        said = notable(event) or routine(event)
        if said or event.event == "submitted" or (event.reason == event.status != "running"):
            passed = time.monotonic() - self._began
            line = f"{passed:5.1f} s  {self._names[index]:24}{event.status:11}{said or ''}"
            self._console.print(line.rstrip(), soft_wrap=True)


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
        self._marked: set[int] = set()
        """Rows that keep the last notable thing, whatever routine follows."""

    def _add(self, name: str) -> TaskID:
        return self._progress.add_task(name, total=1.0, status="queued", note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, index: int, event: Event) -> None:
        row = self._rows[index]
        if event.disposition == "ignored":
            return
        said = notable(event)
        if said is not None:
            self._marked.add(index)
            self._progress.update(row, note=said)
        elif index not in self._marked and (event.status in STYLES or routine(event)):
            self._progress.update(row, note=routine(event) or "")
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
