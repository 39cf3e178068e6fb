"""What a worker works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import httpx
import structlog

from agentflow.core.providers import Task
from agentflow.plugins.catalogue import Catalogue
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.conversation import Chore, Message, WorkerSide
from agentflow.transport.live import Outlet
from agentflow.worker.call import Call
from agentflow.worker.files import Files
from agentflow.worker.reports import Reports
from agentflow.worker.room import Room
from agentflow.worker.running import run_function

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    catalogue: Catalogue
    writer: WorkerSide
    reports: Reports
    files: Files
    room: Room
    http: httpx.AsyncClient
    metrics: Metrics
    outlet: Outlet | None
    """Where live text goes; None: nowhere."""

    def call(
        self, about: Message | Chore, *, timeout: float, deadline: datetime, account: str | None
    ) -> Call:
        """What the task's functions are given to work on this with."""
        job, attempt, token, task = about.job_id, about.attempt, about.token, about.task
        return Call(
            settings=self.catalogue.of_task(task).settings_of(account),
            http=self.http,
            job_id=job,
            attempt=attempt,
            token=token,
            webhook_url=self.catalogue.webhook_url(task, token),
            idempotency_key=f"{job}:{attempt}",
            timeout=timeout,
            deadline=deadline,
            log=log.bind(job_id=job, attempt=attempt, task=task),
            on_progress=self.reports.progress(job, attempt),
            open_artifact=self.files.open,
            keep_artifact=self.files.keeper(job),
        )

    async def run(self, task: Task[Any], function: Callable[..., Any], *args: Any) -> Any:
        """What one of the task's functions comes to. Raises what it raises."""
        return await run_function(function, *args, stubborn=partial(self._goes_on, task.name))

    def _goes_on(self, task: str, place: str) -> None:
        """A function did not end when it was canceled, and was left behind."""
        self.catalogue.misconduct[task] = f"went on though it was canceled, at {place}"
        log.error("A function does not end when it is canceled", task=task, at=place)
