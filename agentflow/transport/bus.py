"""Live updates inside one process: a ring for those who wait for a job. History is the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from agentflow.types import JobId


class Bell(asyncio.Event):
    """Rings when there is news of a job. `changed` says that its history has some, as it may at
    first; live text rings without."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = True


class Bus:
    """`told` rings the bells of those who listen; a ring says only "look again"."""

    def __init__(self) -> None:
        self._bells: dict[str, set[Bell]] = {}
        self.watchers: list[Callable[[Sequence[JobId]], None]] = []
        """Called with all jobs that changed; they must not block or raise."""

    def told(self, jobs: Sequence[JobId]) -> None:
        for watcher in self.watchers:
            watcher(jobs)
        for job in jobs:
            for bell in self._bells.get(job, ()):
                bell.changed = True
                bell.set()

    @contextmanager
    def listen(self, job: str) -> Iterator[Bell]:
        """A bell that rings when the job changes; the listener clears it."""
        bell = Bell()
        bells = self._bells.setdefault(job, set())
        bells.add(bell)
        try:
            yield bell
        finally:
            bells.discard(bell)
            if not bells:
                self._bells.pop(job, None)
