"""The client waits for a job, and is told of its progress."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from support.scripted import DONE, JOB, Answer, Scripted, problem, say

from agentflow.client import Client, JobFailed, JobTimeout, ServerUnreachable, Unavailable, job

DATABASES = ()


def at(fraction: float | None, base: dict[str, Any] = JOB) -> Answer:
    """The job so far along."""
    return say(200, {**base, "progress": {"fraction": fraction, "message": f"at {fraction}"}})


def test_result_waits_and_gives_what_the_job_came_to(server: Scripted, client: Client) -> None:
    server(say(200, JOB), say(200, JOB), say(200, DONE))
    assert client.job("job_1").result(timeout=60).output == 1
    assert server.seen[1].headers["prefer"] == f"wait={job.LONGEST_WAIT:.0f}"


def test_result_raises_what_the_job_failed_of(server: Scripted, client: Client) -> None:
    error = {"kind": "rate_limited", "message": "slow down", "retryable": True, "odd": 1}
    server(say(200, {**JOB, "status": "failed", "error": error}))
    with pytest.raises(JobFailed, match="slow down") as caught:
        client.job("job_1").result()
    assert caught.value.error
    assert caught.value.error.kind == "rate_limited"
    server(say(200, {**JOB, "status": "canceled"}))
    with pytest.raises(JobFailed, match="canceled"):
        client.job("job_1").result()


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_result_looks_and_gives_up_at_its_timeout(
    server: Scripted, client: Client, timeout: float
) -> None:
    server(say(200, JOB))
    with pytest.raises(JobTimeout, match="still queued"):
        client.job("job_1").result(timeout=timeout)
    assert len(server.seen) > 1
    server(say(200, JOB), say(200, DONE))
    assert client.job("job_1").result(timeout=timeout).output == 1


def test_the_wait_for_a_result_is_not_lengthened_by_retries(server: Scripted) -> None:
    server(say(200, JOB), problem(503))
    with Client(server.url) as client, pytest.raises(Unavailable):
        client.job("job_1").result(timeout=0.1)


def test_a_server_that_stalls_is_not_waited_for_much_longer(
    server: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(request: BaseHTTPRequestHandler) -> None:
        time.sleep(5)

    monkeypatch.setattr("agentflow.client.wire.GRACE", 0.05)
    server(say(200, JOB), stall)
    began = time.monotonic()
    with pytest.raises(ServerUnreachable):
        client.job("job_1").result(timeout=0.05)
    assert time.monotonic() - began < 4


def test_a_server_that_does_not_wait_is_not_asked_without_pause(
    server: Scripted, client: Client
) -> None:
    server(say(200, JOB))
    with pytest.raises(JobTimeout):
        client.job("job_1").result(timeout=0.6)
    assert len(server.seen) <= 4


def test_progress_is_told_once_each_until_the_end(
    server: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "EAGER", 0.0)
    told: list[Any] = []
    server(say(200, JOB), say(200, JOB), at(0.1), at(0.1), at(0.2), at(None), at(1, DONE))
    client.job("job_1").result(on_progress=lambda *news: told.append(news))
    assert told == [(0.1, "at 0.1"), (0.2, "at 0.2"), (None, "at None"), (1, "at 1")]
    assert {asked.headers["prefer"] for asked in server.seen[1:]} == {"wait=1"}


def test_progress_known_before_is_told_too(server: Scripted, client: Client) -> None:
    told: list[Any] = []
    server(at(1, DONE))
    client.job("job_1").result(on_progress=lambda *news: told.append(news))
    assert told == [(1, "at 1")]
