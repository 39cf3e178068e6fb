"""A line in the log for what becomes of each job, for the person in front of `agentflow dev`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import structlog

from agentflow.core.job import FINAL
from agentflow.runtime import Runtime
from agentflow.store import queries
from agentflow.types import DEFAULT_TENANT, JobId

log = structlog.get_logger(__name__)

PAUSE = 0.1
"""Seconds between two looks; what a job went through meanwhile is told by its last state."""

MOST = 50
"""Jobs told of per look; of the others only the number is."""


@asynccontextmanager
async def narrating(runtime: Runtime) -> AsyncIterator[None]:
    """Log the changes of jobs while the block runs, in place of the writer's own lines."""
    narrator = Narrator()
    quiet = logging.getLogger("agentflow.writer.watching")
    before = quiet.level
    quiet.setLevel(logging.WARNING)
    runtime.bus.watchers.append(narrator.heard)
    task = asyncio.create_task(narrator.run(), name="agentflow-narrator")
    try:
        yield
    finally:
        quiet.setLevel(before)
        runtime.bus.watchers.remove(narrator.heard)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Narrator:
    def __init__(self) -> None:
        self._changed: dict[JobId, None] = {}
        self._bell = asyncio.Event()
        self._told: dict[str, tuple[Any, ...]] = {}

    def heard(self, jobs: Sequence[JobId]) -> None:
        self._changed.update(dict.fromkeys(jobs))
        self._bell.set()

    async def run(self) -> None:
        while True:
            await self._bell.wait()
            await asyncio.sleep(PAUSE)
            self._bell.clear()
            jobs, self._changed = list(self._changed), {}
            for id in jobs[:MOST]:
                try:
                    self._tell(await queries.get_job(DEFAULT_TENANT, id))
                except Exception as error:  # a line less in the log is no reason to stop
                    log.debug("A job was not told of", job_id=id, error=str(error))
            if len(jobs) > MOST:
                log.info("More jobs changed", jobs=len(jobs) - MOST)

    def _tell(self, job: dict[str, Any]) -> None:
        """Log it if its status, reason or attempt is news."""
        id, status = job["id"], job["status"]
        state = (status, job["reason"], job["attempt"])
        if self._told.get(id) == state:
            return
        if status in FINAL:
            self._told.pop(id, None)
        else:
            self._told[id] = state
        say = log.warning if status in ("failed", "expired") else log.info
        say(
            f"Job {status}",
            job_id=id,
            task=job["task"],
            seconds=_seconds(job) if status in FINAL else None,
            attempt=job["attempt"] if job["attempt"] > 1 else None,
            reason=None if job["reason"] in (status, "started", "accepted") else job["reason"],
            entity=job["entity"],
            error=(job["error"] or {}).get("message"),
        )


def _seconds(job: dict[str, Any]) -> float:
    ended, began = (datetime.fromisoformat(job[k]) for k in ("finished_at", "created_at"))
    return round((ended - began).total_seconds(), 1)
