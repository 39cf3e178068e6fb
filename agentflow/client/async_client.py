"""The API as methods, for code that awaits."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, Unpack

from agentflow.client import answers, routes
from agentflow.client.answers import Bulk, FeedEvent, FeedPage
from agentflow.client.errors import ApiError
from agentflow.client.job import AsyncJob
from agentflow.client.retries import Limits
from agentflow.client.routes import BudgetOptions, JobFilter, JobOptions, JobRequest, UsageFilter
from agentflow.client.transport import Asynchronous, options
from agentflow.client.wire import Wire


class AsyncClient:
    """The methods of `Client`, under the same names, with the same arguments and errors.

    Those that give one thing are awaited; those that give many, one after the other, are iterated
    with `async for`. A loop that is left early is closed at once with `contextlib.aclosing`.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_for: float = 30.0,
        repeats: int | None = None,
    ) -> None:
        io = Asynchronous(**options(url, api_key, timeout))
        self._wire = Wire(url, io, timeout, Limits(retry_for, repeats))

    @property
    def url(self) -> str:
        return self._wire.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._wire.close()

    async def submit(self, task: str, input: Any = None, **options: Unpack[JobOptions]) -> AsyncJob:
        request = routes.submit({"task": task, "input": input, **options})
        return AsyncJob(self._wire, await self._wire.ask(request))

    async def submit_many(self, jobs: Iterable[JobRequest]) -> list[AsyncJob | ApiError]:
        batches = await self._wire.all(routes.batches(jobs))
        found = [outcome for said in batches for outcome in answers.outcomes(said)]
        return [o if isinstance(o, ApiError) else AsyncJob(self._wire, o) for o in found]

    async def job(self, id: str) -> AsyncJob:
        return AsyncJob(self._wire, await self._wire.ask(routes.job(id)))

    async def jobs(
        self, *, page: int = 50, **wanted: Unpack[JobFilter]
    ) -> AsyncGenerator[AsyncJob, None]:
        async with aclosing(self._wire.items(routes.jobs(page, wanted))) as items:
            async for data in items:
                yield AsyncJob(self._wire, data)

    async def cancel_many(
        self, *, dry_run: bool = True, limit: int = 1000, **wanted: Unpack[JobFilter]
    ) -> Bulk:
        said = await self._wire.ask(routes.cancel_many(wanted, dry_run, limit))
        return answers.known(Bulk, said)

    async def retry_many(
        self, *, dry_run: bool = True, limit: int = 1000, **wanted: Unpack[JobFilter]
    ) -> Bulk:
        said = await self._wire.ask(routes.retry_many(wanted, dry_run, limit))
        return answers.known(Bulk, said)

    async def feed(self, after: str | None = None) -> AsyncGenerator[FeedEvent, None]:
        async with aclosing(self._wire.live(routes.feed(after))) as messages:
            async for message in messages:
                yield FeedEvent.read(json.loads(message.data), cursor=message.id)

    async def feed_page(self, after: str | None = None, limit: int = 1000) -> FeedPage:
        return answers.feed_page(await self._wire.ask(routes.feed_page(after, limit)))

    async def pauses(self) -> list[dict[str, Any]]:
        return await self._all(routes.pauses())

    async def pause(self, target: str, note: str | None = None) -> dict[str, Any]:
        return await self._wire.ask(routes.pause(target, note))

    async def resume(self, target: str) -> dict[str, Any]:
        return await self._wire.ask(routes.resume(target))

    async def usage(self, **wanted: Unpack[UsageFilter]) -> dict[str, Any]:
        """What calls used and cost, in `items`: one for each group of `group_by` (`task`, `model`,
        `tag`, `tenant`, `day`, `month`, or several with commas)."""
        return await self._wire.ask(routes.usage(wanted))

    async def budgets(self) -> list[dict[str, Any]]:
        """The caps there are, with what is spent and set aside."""
        return await self._all(routes.budgets())

    async def set_budget(self, cap: str, **options: Unpack[BudgetOptions]) -> dict[str, Any]:
        """Cap what calls may cost. Amounts are decimal strings."""
        return await self._wire.ask(routes.set_budget(cap, options))

    async def remove_budget(self, id: str) -> dict[str, Any]:
        """Raises `NotFound` if there is none."""
        return await self._wire.ask(routes.remove_budget(id))

    def deliveries(
        self, *, status: str | None = None, provider: str | None = None, page: int = 50
    ) -> AsyncGenerator[dict[str, Any], None]:
        return self._wire.items(routes.deliveries(page, status=status, provider=provider))

    async def delivery(self, id: str) -> dict[str, Any]:
        return await self._wire.ask(routes.delivery(id))

    async def replay(self, id: str) -> dict[str, Any]:
        return await self._wire.ask(routes.replay(id))

    def handler_runs(
        self, *, status: str | None = None, page: int = 50
    ) -> AsyncGenerator[dict[str, Any], None]:
        return self._wire.items(routes.handler_runs(page, status))

    async def retry_handler(self, id: str) -> dict[str, Any]:
        return await self._wire.ask(routes.retry_handler(id))

    async def tasks(self) -> list[dict[str, Any]]:
        return await self._all(routes.tasks())

    async def providers(self) -> list[dict[str, Any]]:
        return await self._all(routes.providers())

    async def health(self) -> dict[str, Any]:
        return await self._wire.ask(routes.health())

    async def download(self, artifact: str, to: Path | str) -> Path:
        return await self._wire.download(routes.artifact(artifact), Path(to))

    async def _all(self, request: routes.Request) -> list[dict[str, Any]]:
        return [item async for item in self._wire.items(request)]
