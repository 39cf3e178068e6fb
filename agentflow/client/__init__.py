"""A client of the HTTP API. It stands alone on httpx: no other module of agentflow is loaded.

    with Client("http://127.0.0.1:8700") as client:
        job = client.submit("replicate.predict", {...}, idempotency_key="shot-42")
        for event in job.events():
            print(event.status, event.progress)
        print(job.result(timeout=60).output)

`AsyncClient` has the same names: `async with`, `await`, `async for`. What both raise is their own,
not what `agentflow.errors` holds under the same names.
"""

from __future__ import annotations

from agentflow.client.answers import Bulk, Delta, Event, FeedEvent, FeedPage, Result
from agentflow.client.async_client import AsyncClient
from agentflow.client.client import Client
from agentflow.client.errors import (
    ApiError,
    ClientError,
    Conflict,
    Error,
    Forbidden,
    InvalidRequest,
    JobFailed,
    JobTimeout,
    NotFound,
    ServerUnreachable,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from agentflow.client.job import AsyncJob, Job
from agentflow.client.routes import JobFilter, JobOptions, JobRequest

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncJob",
    "Bulk",
    "Client",
    "ClientError",
    "Conflict",
    "Delta",
    "Error",
    "Event",
    "FeedEvent",
    "FeedPage",
    "Forbidden",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "JobFilter",
    "JobOptions",
    "JobRequest",
    "JobTimeout",
    "NotFound",
    "Result",
    "ServerUnreachable",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
]
