"""A client of the HTTP API. It stands alone on httpx: no other module of agentflow is loaded.

    with Client("http://127.0.0.1:8700") as client:
        job = client.submit("replicate.predict", {...}, idempotency_key="shot-42")
        for event in job.events():
            print(event.status, event.progress)
        print(job.result(timeout=60).output)

What it raises is its own, not what `agentflow.errors` holds under the same names.
"""

from __future__ import annotations

from agentflow.client.client import Client
from agentflow.client.errors import (
    ApiError,
    ClientError,
    Error,
    JobFailed,
    JobTimeout,
    ServerUnreachable,
)
from agentflow.client.job import Event, Job, Result

__all__ = [
    "ApiError",
    "Client",
    "ClientError",
    "Error",
    "Event",
    "Job",
    "JobFailed",
    "JobTimeout",
    "Result",
    "ServerUnreachable",
]
