"""The API as methods."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from agentflow.client.job import Job
from agentflow.client.wire import Wire, place


class Client:
    """`timeout` is in seconds, for one request.

    A request that fails in passing (no connection, a broken one, 503) is sent again up to
    `repeats` times where that is safe. A submit is, by its idempotency key, which is made up where
    none is given; so are reading and canceling. `retry` and `replay` are sent again only if they
    surely did not arrive.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = 30.0, repeats: int = 4
    ) -> None:
        self._wire = Wire(url, api_key, timeout, repeats)

    @property
    def url(self) -> str:
        return self._wire.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    def submit(
        self,
        task: str,
        input: Any = None,
        *,
        idempotency_key: str | None = None,
        entity: str | None = None,
        priority: int = 0,
        delay: float | None = None,
        run_at: datetime | None = None,
        deadline: float | datetime | None = None,
        max_attempts: int | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Job:
        """Store a job. `delay` and a numeric `deadline` are in seconds; datetimes are aware.

        Raises `ApiError`: 422 with every fault, 409 for a key that was used for something else.
        """
        body = {
            "task": task,
            "input": input,
            "entity": entity,
            "priority": priority,
            "delay": delay,
            "run_at": _written(run_at),
            "deadline": _written(deadline),
            "max_attempts": max_attempts,
            "tags": list(tags),
            "metadata": dict(metadata or {}),
        }
        key = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return Job(self._wire, self._wire.post("/v1/jobs", body, headers=key, repeatable=True))

    def job(self, id: str) -> Job:
        """Raises `ApiError` 404."""
        return Job(self._wire, self._wire.get(place("/v1/jobs", id)))

    def jobs(
        self,
        *,
        status: str | None = None,
        task: str | None = None,
        entity: str | None = None,
        tag: str | None = None,
        since: datetime | None = None,
        page: int = 50,
    ) -> Iterator[Job]:
        """Newest first; read from the server by the `page` while the iteration goes on."""
        wanted = {"status": status, "task": task, "entity": entity, "tag": tag}
        params = {**wanted, "since": _written(since), "limit": page}
        return (Job(self._wire, data) for data in self._wire.items("/v1/jobs", params))

    def deliveries(
        self, *, status: str | None = None, provider: str | None = None, page: int = 50
    ) -> Iterator[dict[str, Any]]:
        """Webhooks received, newest first, without their bodies."""
        params = {"status": status, "provider": provider, "limit": page}
        return self._wire.items("/v1/deliveries", params)

    def delivery(self, id: str) -> dict[str, Any]:
        """One webhook with its body."""
        return self._wire.get(place("/v1/deliveries", id))

    def replay(self, id: str) -> dict[str, Any]:
        """Have a stored webhook read again."""
        return self._wire.post(place("/v1/deliveries", id, "/replay"))

    def handler_runs(
        self, *, status: str | None = None, page: int = 50
    ) -> Iterator[dict[str, Any]]:
        """Runs of the application's handlers that are owed or set aside, newest first."""
        return self._wire.items("/v1/handler-runs", {"status": status, "limit": page})

    def retry_handler(self, id: str) -> dict[str, Any]:
        """Run a handler again that was set aside."""
        return self._wire.post(place("/v1/handler-runs", id, "/retry"))

    def tasks(self) -> list[dict[str, Any]]:
        return list(self._wire.items("/v1/tasks", {}))

    def providers(self) -> list[dict[str, Any]]:
        return list(self._wire.items("/v1/providers", {}))

    def health(self) -> dict[str, Any]:
        """`status` is `ok` or `unavailable`, and `missing` says what is."""
        return self._wire.ready()

    def download(self, artifact: str, to: Path | str) -> Path:
        """Copy a file in custody (`art_…`) to the path `to`, whole or not at all."""
        return self._wire.download(place("/v1/artifacts", artifact), Path(to))


def _written(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
