"""The API as methods, for code that blocks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, Unpack

from agentflow.client import answers, routes
from agentflow.client.answers import Bulk, FeedEvent, FeedPage
from agentflow.client.errors import ApiError
from agentflow.client.job import Job
from agentflow.client.retries import Limits
from agentflow.client.routes import BudgetOptions, JobFilter, JobOptions, JobRequest, UsageFilter
from agentflow.client.transport import Blocking, finish, options, walk
from agentflow.client.wire import Wire


class Client:
    """`timeout` is in seconds, for one request.

    A request that fails in passing (no connection, a broken one, 429, 502 to 504) is sent again
    where that is safe, at most for `retry_for` seconds from its first failure, and not at all
    with 0; `repeats` bounds the number too. A submit is safe by its idempotency key, which is made
    up where none is given. `replay`, `retry_handler` and `retry_many` are sent again only if they
    surely did not arrive.
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
        io = Blocking(**options(url, api_key, timeout))
        self._wire = Wire(url, io, timeout, Limits(retry_for, repeats))

    @property
    def url(self) -> str:
        return self._wire.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        finish(self._wire.close())

    def submit(self, task: str, input: Any = None, **options: Unpack[JobOptions]) -> Job:
        """Store a job.

        Raises `InvalidRequest` with every fault, or `Conflict` for a key that was used for
        something else.
        """
        request = routes.submit({"task": task, "input": input, **options})
        return Job(self._wire, self._ask(request))

    def submit_many(self, jobs: Iterable[JobRequest]) -> list[Job | ApiError]:
        """Store many jobs, up to a thousand at a time. In the place of one that is refused stands
        its error; of the others, id and status are known until `refresh`. Jobs with idempotency
        keys of yours may be submitted again after an exception.
        """
        batches = finish(self._wire.all(routes.batches(jobs)))
        found = [outcome for said in batches for outcome in answers.outcomes(said)]
        return [o if isinstance(o, ApiError) else Job(self._wire, o) for o in found]

    def job(self, id: str) -> Job:
        """Raises `NotFound`."""
        return Job(self._wire, self._ask(routes.job(id)))

    def jobs(self, *, page: int = 50, **wanted: Unpack[JobFilter]) -> Iterator[Job]:
        """Newest first; read from the server by the `page` while the iteration goes on."""
        return (Job(self._wire, data) for data in self._items(routes.jobs(page, wanted)))

    def cancel_many(
        self, *, dry_run: bool = True, limit: int = 1000, **wanted: Unpack[JobFilter]
    ) -> Bulk:
        """Ask for the end of all jobs of a filter; by default only say which those are."""
        said = self._ask(routes.cancel_many(wanted, dry_run, limit))
        return answers.known(Bulk, said)

    def retry_many(
        self, *, dry_run: bool = True, limit: int = 1000, **wanted: Unpack[JobFilter]
    ) -> Bulk:
        """Submit all final jobs of a filter again; by default only say which those are."""
        said = self._ask(routes.retry_many(wanted, dry_run, limit))
        return answers.known(Bulk, said)

    def feed(self, after: str | None = None) -> Iterator[FeedEvent]:
        """Entries of all jobs behind a cursor, or from the first, and those to come, without end;
        `after="now"` leaves out those there are.

        A stream that breaks is taken up where it broke. Raises `ServerUnreachable`.
        """
        messages = walk(self._wire.live(routes.feed(after)))
        return (FeedEvent.read(json.loads(m.data), cursor=m.id) for m in messages)

    def feed_page(self, after: str | None = None, limit: int = 1000) -> FeedPage:
        """The entries there are behind a cursor, at most `limit`; the next page is behind its."""
        return answers.feed_page(self._ask(routes.feed_page(after, limit)))

    def pauses(self) -> list[dict[str, Any]]:
        """What is paused now."""
        return list(self._items(routes.pauses()))

    def pause(self, target: str, note: str | None = None) -> dict[str, Any]:
        """Start no more work of a provider (`replicate`) or a task (`replicate.predict`)."""
        return self._ask(routes.pause(target, note))

    def resume(self, target: str) -> dict[str, Any]:
        """End a pause. Raises `NotFound` if there is none."""
        return self._ask(routes.resume(target))

    def usage(self, **wanted: Unpack[UsageFilter]) -> dict[str, Any]:
        """What calls used and cost, in `items`: one for each group of `group_by` (`task`, `model`,
        `tag`, `tenant`, `day`, `month`, or several with commas)."""
        return self._ask(routes.usage(wanted))

    def budgets(self) -> list[dict[str, Any]]:
        """The caps there are, with what is spent and set aside."""
        return list(self._items(routes.budgets()))

    def set_budget(self, cap: str, **options: Unpack[BudgetOptions]) -> dict[str, Any]:
        """Cap what calls may cost. Amounts are decimal strings."""
        return self._ask(routes.set_budget(cap, options))

    def remove_budget(self, id: str) -> dict[str, Any]:
        """Raises `NotFound` if there is none."""
        return self._ask(routes.remove_budget(id))

    def deliveries(
        self, *, status: str | None = None, provider: str | None = None, page: int = 50
    ) -> Iterator[dict[str, Any]]:
        """Webhooks received, newest first, without their bodies."""
        return self._items(routes.deliveries(page, status=status, provider=provider))

    def delivery(self, id: str) -> dict[str, Any]:
        """One webhook with its body."""
        return self._ask(routes.delivery(id))

    def replay(self, id: str) -> dict[str, Any]:
        """Have a stored webhook read again."""
        return self._ask(routes.replay(id))

    def handler_runs(
        self, *, status: str | None = None, page: int = 50
    ) -> Iterator[dict[str, Any]]:
        """Runs of the application's handlers that are owed or set aside, newest first."""
        return self._items(routes.handler_runs(page, status))

    def retry_handler(self, id: str) -> dict[str, Any]:
        """Run a handler again that was set aside."""
        return self._ask(routes.retry_handler(id))

    def tasks(self) -> list[dict[str, Any]]:
        return list(self._items(routes.tasks()))

    def providers(self) -> list[dict[str, Any]]:
        return list(self._items(routes.providers()))

    def health(self) -> dict[str, Any]:
        """`status` is `ok` or `unavailable`, and `missing` says what is."""
        return self._ask(routes.health())

    def download(self, artifact: str, to: Path | str) -> Path:
        """Copy a file in custody (`art_…`) to the path `to`, whole or not at all."""
        return finish(self._wire.download(routes.artifact(artifact), Path(to)))

    def _ask(self, request: routes.Request) -> dict[str, Any]:
        return finish(self._wire.ask(request))

    def _items(self, request: routes.Request) -> Iterator[dict[str, Any]]:
        return walk(self._wire.items(request))
