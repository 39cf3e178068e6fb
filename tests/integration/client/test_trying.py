"""The client against a server that misbehaves on purpose: what is tried again, and what is said."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from support.scripted import DONE, JOB, Scripted, hang_up, problem, say

from agentflow.client import (
    ApiError,
    Client,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    ServerUnreachable,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from agentflow.client.answers import retry_after
from agentflow.client.retries import Limits

DATABASES = ()


# -- trying again ------------------------------------------------------------------------------


def test_a_submit_is_repeated_under_one_key(server: Scripted, client: Client) -> None:
    server(problem(503), hang_up, problem(429), say(502, b"<html>"), say(201, JOB))
    assert client.submit("a.b", {"x": 1}).id == "job_1"
    keys = {asked.headers["idempotency-key"] for asked in server.seen}
    bodies = {asked.body for asked in server.seen}
    assert (len(server.seen), len(keys), len(bodies)) == (5, 1, 1)
    assert server.seen[0].json == {"task": "a.b", "input": {"x": 1}}


def test_two_submits_have_two_keys_and_a_given_one_is_used(
    server: Scripted, client: Client
) -> None:
    server(say(201, JOB))
    client.submit("a.b")
    client.submit("a.b")
    client.submit("a.b", idempotency_key="mine")
    keys = [asked.headers["idempotency-key"] for asked in server.seen]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_a_retry_of_a_job_is_repeated_under_one_key(server: Scripted, client: Client) -> None:
    server(say(200, DONE), hang_up, say(201, {**JOB, "id": "job_2"}))
    assert client.job("job_1").retry().id == "job_2"
    keys = {asked.headers["idempotency-key"] for asked in server.seen[1:]}
    assert (len(server.seen), len(keys)) == (3, 1)


def test_what_another_arrival_would_do_twice_is_not_repeated(
    server: Scripted, client: Client
) -> None:
    for answer in (problem(503), problem(429), hang_up):
        server(answer, say(202, {"id": "cmd_1", "status": "applied"}))
        with pytest.raises((ServerUnreachable, TooManyRequests)):
            client.replay("dlv_1")
        assert len(server.seen) == 1
        server(answer)
        with pytest.raises((ServerUnreachable, TooManyRequests)):
            client.retry_many(dry_run=False)
        assert len(server.seen) == 1


def test_a_refusal_is_not_repeated(server: Scripted, client: Client) -> None:
    server(problem(422, errors=[{"loc": "task", "msg": "unknown"}]))
    with pytest.raises(InvalidRequest) as caught:
        client.submit("a.b")
    assert (caught.value.status, caught.value.errors[0]["loc"]) == (422, "task")
    assert len(server.seen) == 1


def test_repeats_end(server: Scripted) -> None:
    server(problem(503))
    with Client(server.url, repeats=2) as client, pytest.raises(ServerUnreachable):
        client.job("job_1")
    assert len(server.seen) == 3


def test_no_time_for_retries_means_none(server: Scripted) -> None:
    server(problem(503))
    with Client(server.url, retry_for=0) as client, pytest.raises(Unavailable):
        client.job("job_1")
    assert len(server.seen) == 1


def test_retries_end_with_their_time(server: Scripted) -> None:
    server(problem(503))
    with Client(server.url, retry_for=0.05) as client, pytest.raises(Unavailable):
        client.job("job_1")
    assert 2 <= len(server.seen) <= 8


def test_a_wish_to_wait_beyond_the_time_left_is_told_at_once(server: Scripted) -> None:
    server(problem(429, retry_after="3600"))
    with Client(server.url) as client, pytest.raises(TooManyRequests) as caught:
        client.job("job_1")
    assert caught.value.retry_after == 3600
    assert len(server.seen) == 1


def test_a_wish_to_wait_is_honoured(server: Scripted, client: Client) -> None:
    server(problem(429, retry_after="1"), say(200, JOB))
    began = time.monotonic()
    client.job("job_1")
    assert time.monotonic() - began >= 1


def test_pauses_grow_are_spread_and_never_undercut_the_server() -> None:
    limits = Limits(seconds=30)
    assert [limits.pause(n, 0, None, 1.0) for n in (1, 2, 3, 9, 99)] == [0.25, 0.5, 1, 5, 5]
    assert limits.pause(1, 0, None, 0.0) == 0.125
    assert limits.pause(1, 0, 2.0, 0.0) == 2
    assert limits.pause(1, 0, 2.0, 1.0) == 2.125
    assert limits.pause(1, 29.9, None, 1.0) is None
    assert limits.pause(1, 0, 31.0, 0.0) is None
    assert Limits(30, times=2).pause(3, 0, None, 0.0) is None


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(said: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": said}, datetime(2026, 1, 31, 12, tzinfo=UTC)) == seconds


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized), (403, Forbidden), (404, NotFound), (409, Conflict),
        (422, InvalidRequest), (429, TooManyRequests), (503, Unavailable), (413, ApiError),
    ],
)  # fmt: skip
def test_every_refusal_has_its_class(server: Scripted, status: int, kind: type[ApiError]) -> None:
    server(problem(status))
    with Client(server.url, retry_for=0) as client, pytest.raises(ApiError) as caught:
        client.job("job_1")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.title, error.detail) == (status, "No", "because")
    assert str(error) == "No: because"


def test_somebody_else_at_that_address_is_not_taken_for_agentflow(
    server: Scripted, client: Client
) -> None:
    for status in (200, 404, 302):
        server(say(status, b"<html>"))
        with pytest.raises(ServerUnreachable, match="does not answer as agentflow does"):
            client.job("job_1")


def test_nobody_at_that_address() -> None:
    with Client("http://127.0.0.1:9", repeats=0) as client, pytest.raises(ServerUnreachable):
        client.job("job_1")
    with pytest.raises(ValueError, match="no address"):
        Client("127.0.0.1:9")


def test_a_misspelt_name_is_refused_before_anything_is_sent(
    server: Scripted, client: Client
) -> None:
    with pytest.raises(TypeError, match="prioritty"):
        client.submit("a.b", prioritty=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="tsk"):
        client.cancel_many(tsk="a.b", dry_run=False)  # type: ignore[call-arg]
    assert server.seen == []
