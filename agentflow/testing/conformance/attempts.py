"""One attempt and nothing around it: the task's functions with a real `Call`, and what the worker
would make of what they return or raise."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import structlog

from agentflow.core.events import Failed, Succeeded
from agentflow.core.providers import Outcome, Task
from agentflow.core.results import Artifact, Custody
from agentflow.errors import InvalidInput
from agentflow.plugins.catalogue import Ready
from agentflow.testing.conformance.order import HERE
from agentflow.testing.simulator import Simulator
from agentflow.types import JobId, Token, new_id, utcnow
from agentflow.worker.call import Call
from agentflow.worker.outcomes import failure_of, news_of, outcome_of
from agentflow.worker.running import run_function, with_input


class Attempts:
    """`asked` counts what reached the simulator as a create."""

    def __init__(self, ready: Ready, sim: Simulator) -> None:
        self.ready, self.sim = ready, sim
        self.http = httpx.AsyncClient(timeout=30.0, follow_redirects=False)
        self.files: dict[str, bytes] = {}

    @property
    def asked(self) -> int:
        return self.sim.stats.counts["asked"]

    async def make(
        self,
        task: Task[Any],
        input: Any,
        *,
        timeout: float | None = None,
        webhook: str | None = None,
    ) -> Outcome:
        """What one call of the task's function comes to; `timeout` instead of the policy's."""
        task = self._own(task)
        timeout = timeout or task.policy.timeout
        call = self.call(timeout, webhook)
        unsure = not task.policy.repeatable
        try:
            given = task.validate(self.with_files(input))
            async with asyncio.timeout(timeout):
                returned = await run_function(task.function, call, given)
            return outcome_of(returned, task)
        except Exception as error:  # whatever a plugin's function raises
            return Failed(failure_of(error, self.ready, task, unsure=unsure))

    async def fetch(self, task: Task[Any], external_id: str, input: Any) -> Outcome | None:
        """What the task's `fetch` says of work made with this input. Raises what it raises."""
        task = self._own(task)
        assert task.fetcher is not None
        fetch = with_input(task, task.fetcher, self.with_files(input))
        return news_of(await run_function(fetch, self.call(), external_id), task)

    async def find(self, task: Task[Any], token: str, since: datetime, input: Any) -> Any:
        task = self._own(task)
        assert task.finder is not None
        find = with_input(task, task.finder, self.with_files(input))
        return await run_function(find, self.call(), token, since)

    def _own(self, task: Task[Any]) -> Task[Any]:
        """The task as these settings make it."""
        return self.ready.provider.tasks[task.name]

    def call(self, timeout: float = 15.0, webhook: str | None = None) -> Call:
        token = Token(new_id("tok").replace("tok_", ""))
        job = JobId(new_id("job"))
        return Call(
            settings=self.ready.settings,
            http=self.http,
            job_id=job,
            attempt=1,
            token=token,
            webhook_url=webhook and f"{webhook}/{token}",
            idempotency_key=f"{job}:1",
            timeout=timeout,
            deadline=utcnow() + timedelta(hours=1),
            log=structlog.get_logger("conformance"),
            on_progress=lambda _fraction, _message: None,
            open_artifact=self._open,
            keep_artifact=self._keep,
        )

    def with_files(self, input: Any) -> Any:
        """The input with the id of a file for every `bytes` in it."""
        match input:
            case str():
                return input.replace(HERE, self.sim.url)
            case bytes():
                id = f"art_{new_id('job').removeprefix('job_')}_0"
                self.files[id] = input
                return id
            case dict():
                return {name: self.with_files(value) for name, value in input.items()}
            case list():
                return [self.with_files(value) for value in input]
            case _:
                return input

    @asynccontextmanager
    async def _open(self, id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        if id not in self.files:
            raise InvalidInput(f"There is no file {id} in custody")
        yield _once(self.files[id])

    async def _keep(self, chunks: AsyncIterator[bytes], name: str, media_type: str) -> Artifact:
        content = b"".join([chunk async for chunk in chunks])
        return Artifact(
            None, name, media_type, status=Custody.STORED, size=len(content), key=name,
            sha256=hashlib.sha256(content).hexdigest(),
        )  # fmt: skip

    async def close(self) -> None:
        await self.http.aclose()


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def kind(outcome: Any) -> str | None:
    """The kind of a failure; None of all else."""
    return str(outcome.error.kind) if isinstance(outcome, Failed) else None


def said(outcome: Any) -> str:
    """An outcome in a message."""
    match outcome:
        case Failed(error=error):
            return f"{error.kind} ({error.message[:200]})"
        case Succeeded():
            return "a success"
        case _:
            return type(outcome).__name__
