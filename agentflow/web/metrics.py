"""`GET /metrics`: the numbers of this process, and those of the database that all share."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentflow.clock import Clock
from agentflow.core.job import FINAL, Status
from agentflow.errors import StoreUnavailable
from agentflow.store import queries
from agentflow.store.database import Database
from agentflow.store.keys import PREFIX
from agentflow.store.observing import collecting, open_jobs, trouble
from agentflow.telemetry.metrics import CONTENT_TYPE, Metrics
from agentflow.web.auth import presented_key
from agentflow.web.context import Context, context, identify
from agentflow.web.guard import from_here
from agentflow.web.routes import Routes

numbers = Routes("metrics")

DUE_EVERY = 1.0
"""Seconds for which the age of the oldest due work is good enough."""

COUNT_EVERY = 5.0
"""Seconds for which the count of open jobs is good enough."""


class Gauges:
    """What is measured when somebody looks. `queues` tells how many calls wait in the broker, by
    provider, and `redis` whether it answers, None where there is none. A worker has no
    `database`; it alone has `limits`: who waits for a permit and which are held."""

    def __init__(
        self,
        metrics: Metrics,
        clock: Clock,
        *,
        queues: Callable[[], Mapping[str, int]],
        redis: Callable[[], bool] | None,
        database: Database | None,
        limits: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]] | None = None,
    ) -> None:
        self.metrics, self._clock = metrics, clock
        self._queues, self._redis, self._database = queues, redis, database
        self._due_at = self._counted_at = float("-inf")
        self._lengths = metrics.gauge("queue_length", "Calls in the broker, unclaimed.", "queue")
        if redis is not None:
            self._redis_up = metrics.gauge("redis_up", "Whether Redis answers.")[()]
        self._limits = limits
        if limits is not None:
            self._waiting = metrics.gauge(
                "limit_waiting", "Calls that wait in this worker for a permit.", "limit"
            )
            self._permits = metrics.gauge("limit_held", "Permits this worker holds.", "limit")
        if database is not None:
            self._database_up = metrics.gauge("database_up", "Whether the database answers.")[()]
            self._open = metrics.gauge("open_jobs", "Jobs that are not final.", "status")
            self._collecting = metrics.gauge(
                "collecting_jobs", "Jobs with files on their way into custody."
            )[()]
            self._collecting_since = metrics.gauge(
                "oldest_collecting_seconds", "How long the first of them has been collecting."
            )[()]
            self._due = metrics.gauge(
                "oldest_due_seconds", "How late the oldest due alarm or unread inbox row is."
            )[()]

    async def text(self) -> bytes:
        """Everything, measured anew where it is old. What cannot be learned stays as it was."""
        self._lengths.reset({(queue,): n for queue, n in self._queues().items()})
        if self._redis is not None:
            self._redis_up.set(self._redis())
        if self._limits is not None:
            waiting, held = self._limits()
            self._waiting.reset({(limit,): n for limit, n in waiting.items()})
            self._permits.reset({(limit,): n for limit, n in held.items()})
        if self._database is not None:
            try:
                await self._read()
                self._database_up.set(1)
            except StoreUnavailable:
                self._database_up.set(0)
        return self.metrics.text()

    async def trouble(self) -> list[str]:
        """Why the database does not answer, in words."""
        return [] if self._database is None else await trouble(self._database)

    async def _read(self) -> None:
        """The time is noted before the question, so that a crowd of scrapers asks once."""
        now = time.monotonic()
        if now - self._due_at >= DUE_EVERY:
            self._due_at = now
            self._due.set(await queries.oldest_due(self._clock.now()) or 0.0)
        if now - self._counted_at >= COUNT_EVERY:
            self._counted_at = now
            none = {s.value: 0 for s in Status if s not in FINAL}
            found = none | await open_jobs()
            self._open.reset({(status,): n for status, n in found.items()})
            jobs, seconds = await collecting(self._clock.now())
            self._collecting.set(jobs)
            self._collecting_since.set(seconds)


def gauges(request: Request) -> Gauges | None:
    """Of the running process; None before the start."""
    found: Gauges | None = getattr(request.app.state, "gauges", None)
    return found


@numbers.add(
    "GET",
    "/metrics",
    answers={200: None, 401: None, 403: None, 429: None},
    also="text/plain",
    scope="open",
)
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus

    For this machine, for the bearer of `AGENTFLOW_METRICS_TOKEN`, and for an operator's key.
    """
    ctx, found = context(request), gauges(request)
    await _admit(request, ctx)
    if found is None:
        raise HTTPException(503, "Nothing is counted here")
    return Response(await found.text(), media_type=CONTENT_TYPE)


async def _admit(request: Request, ctx: Context) -> None:
    """Raise 403 for a stranger, 401 and 429 for a bad key."""
    if from_here(request.scope):
        return
    given = _given(request.headers).encode(errors="replace")
    token = ctx.settings.metrics_token
    if token is not None and hmac.compare_digest(given, token.get_secret_value().encode()):
        return
    if not given.startswith(PREFIX.encode()):
        raise HTTPException(403, "This needs the metrics token, or an admin key.")
    (await identify(request, ctx)).require("admin")


def _given(headers: Headers) -> str:
    try:
        return presented_key(headers, required=True) or ""
    except HTTPException:  # there is none
        return ""
