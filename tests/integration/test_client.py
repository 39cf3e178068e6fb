"""The client against a server that misbehaves on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.scripted import (
    DONE,
    JOB,
    Answer,
    Scripted,
    entry,
    hang_up,
    problem,
    say,
    scripted,
    stream,
)

from agentflow.client import (
    ApiError,
    Client,
    Conflict,
    Forbidden,
    InvalidRequest,
    Job,
    JobFailed,
    JobRequest,
    JobTimeout,
    NotFound,
    ServerUnreachable,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    job,
    retries,
    routes,
)
from agentflow.client.answers import retry_after
from agentflow.client.retries import Limits

DATABASES = ()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    with scripted() as made:
        yield made


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url, repeats=4) as made:
        yield made


def at(fraction: float | None, base: dict[str, Any] = JOB) -> Answer:
    """The job so far along."""
    return say(200, {**base, "progress": {"fraction": fraction, "message": f"at {fraction}"}})


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


# -- waiting -----------------------------------------------------------------------------------


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


# -- following ---------------------------------------------------------------------------------


def delta(offset: int, text: str, attempt: int = 1, channel: str = "text") -> str:
    said = {"attempt": attempt, "channel": channel, "offset": offset, "text": text, "more": 1}
    id = f"1:{attempt}.{offset + len(text)}.0"
    return f"id: {id}\r\nevent: delta\r\ndata: {json.dumps(said)}\r\n\r\n"


def gap(offset: int, missing: int | None) -> str:
    said = {"attempt": 1, "channel": "text", "offset": offset, "missing": missing}
    id = f"1:1.{offset + (missing or 0)}.0"
    return f"id: {id}\r\nevent: gap\r\ndata: {json.dumps(said)}\r\n\r\n"


def test_text_over_a_break_comes_whole_and_once(server: Scripted, client: Client) -> None:
    server(
        say(200, JOB),
        stream(entry(0), delta(0, "abc"), entry(1), "id: 1:1.3.0\r\n\r\n", delta(3, "d")[:-9]),
        hang_up,
        stream(delta(3, "def"), entry(2)),  # the stream ends before the position is told
        stream(delta(0, "abcdefg"), delta(7, "h"), entry(3, "succeeded")),
    )
    job = client.job("job_1")
    assert "".join(str(piece) for piece in job.stream()) == "abcdefgh"
    assert server.seen[1].line == "GET /v1/jobs/job_1/events"
    resumed = [asked.headers["last-event-id"] for asked in server.seen[2:]]
    assert resumed == ["1:1.3.0", "1:1.3.0", "2"]


def test_what_is_missing_is_told_where_it_is_missing(server: Scripted, client: Client) -> None:
    server(
        say(200, JOB),
        stream(delta(0, "a"), gap(1, 5), delta(6, "b"), gap(7, None), entry(1, "succeeded")),
    )
    found = [(d.offset, d.text, d.missing) for d in client.job("job_1").stream()]
    assert found == [(0, "a", 0), (1, "", 5), (6, "b", 0), (7, "", None)]


def test_a_stream_has_the_channels_that_are_wanted(server: Scripted, client: Client) -> None:
    said = [delta(0, "a"), delta(0, "log", channel="logs"), delta(0, "b", attempt=2)]
    for channel, texts in (("text", ["a", "b"]), ("logs", ["log"]), (None, ["a", "log", "b"])):
        server(say(200, JOB), stream(*said, entry(1, "succeeded")))
        assert [d.text for d in client.job("job_1").stream(channel)] == texts


def test_who_follows_the_history_asks_for_no_text(server: Scripted, client: Client) -> None:
    server(say(200, JOB), stream(entry(0, "succeeded")))
    assert len(list(client.job("job_1").events())) == 1
    assert server.seen[1].line == "GET /v1/jobs/job_1/events?deltas=false"


def test_a_broken_stream_goes_on_where_it_broke(server: Scripted, client: Client) -> None:
    cut = entry(2)[:-40]
    server(
        say(200, JOB),
        stream(": ping\r\n\r\n", entry(0), entry(1), cut),
        hang_up,
        problem(503),
        stream(entry(2), entry(3, "succeeded")),
    )
    found = list(client.job("job_1").events())
    assert [e.seq for e in found] == [0, 1, 2, 3]
    assert found[1].progress == 0.1
    assert server.seen[1].headers.get("last-event-id") is None
    assert [asked.headers["last-event-id"] for asked in server.seen[2:]] == ["1", "1", "1"]


def test_following_ends_with_the_entry_that_ended_the_job(server: Scripted, client: Client) -> None:
    late = entry(2, "succeeded", disposition="ignored")
    server(say(200, JOB), stream(entry(0), entry(1, "succeeded"), late, entry(3)))
    assert [e.seq for e in client.job("job_1").events()] == [0, 1]
    later = entry(3, "succeeded", disposition="ignored")
    server(say(200, JOB), stream(late, later), say(204))
    assert [e.seq for e in client.job("job_1").events(after=1)] == [2, 3]


def test_following_a_job_that_is_over_ends(server: Scripted, client: Client) -> None:
    server(say(200, DONE), say(204))
    assert list(client.job("job_1").events(after=7)) == []
    assert server.seen[1].headers["last-event-id"] == "7"


@pytest.mark.parametrize("answer", [hang_up, stream(), stream(": ping\r\n\r\n"), problem(503)])
def test_a_stream_that_never_says_anything_ends_in_an_error(
    server: Scripted, answer: Answer
) -> None:
    server(say(200, JOB))
    with Client(server.url, retry_for=0.1) as client:
        job = client.job("job_1")
        server(answer)
        with pytest.raises(ServerUnreachable):
            list(job.events())
    assert len(server.seen) > 1


def test_news_renews_the_patience_with_a_stream(server: Scripted) -> None:
    server(say(200, JOB))
    with Client(server.url, repeats=0) as client:
        job = client.job("job_1")
        breaks = [part for n in range(8) for part in (stream(entry(n)), hang_up, hang_up)]
        server(*breaks, stream(entry(8, "failed")))
        assert [e.seq for e in job.events()] == list(range(9))


def test_what_is_no_stream_is_not_read_as_one(server: Scripted, client: Client) -> None:
    server(say(200, JOB))
    with pytest.raises(ServerUnreachable, match="no live stream"):
        list(client.job("job_1").events())


def test_line_separators_within_json_do_not_end_a_line(server: Scripted, client: Client) -> None:
    odd = "a\u2028b\x85c"
    server(say(200, JOB), stream(entry(0, "failed", said={"text": odd})))
    [event] = client.job("job_1").events()
    assert event.said == {"text": odd}


def test_the_feed_goes_on_behind_its_cursor(server: Scripted, client: Client) -> None:
    server(
        stream(entry(0, id="c1"), entry(0, "succeeded", id="c2", job_id="job_2")),
        stream(),
        stream(entry(1, id="c3")),
    )
    found = list(islice(client.feed(after="c0"), 3))
    assert [(e.job_id, e.seq, e.cursor) for e in found] == [
        ("job_1", 0, "c1"), ("job_2", 0, "c2"), ("job_1", 1, "c3"),
    ]  # fmt: skip
    assert [asked.line for asked in server.seen] == ["GET /v1/events?after=c0"] * 3
    assert [a.headers.get("last-event-id") for a in server.seen] == [None, "c2", "c2"]


def test_a_cursor_alone_is_remembered(server: Scripted, client: Client) -> None:
    """`now` must not become a later now by a break."""
    server(stream("id: c1\r\n\r\n", "id: c2\r\n"), stream(entry(0, id="c3")))
    assert next(client.feed(after="now")).cursor == "c3"
    assert server.seen[1].headers["last-event-id"] == "c1"


def test_a_page_of_the_feed_tells_where_to_go_on(server: Scripted, client: Client) -> None:
    item = json.loads(entry(0).split("data: ")[1])
    server(say(200, {"items": [item], "next_cursor": "c1"}))
    page = client.feed_page("c0", limit=5)
    assert ([e.job_id for e in page.events], page.cursor) == (["job_1"], "c1")
    assert server.seen[0].line == "GET /v1/events?after=c0&limit=5"


# -- many at once ------------------------------------------------------------------------------


def test_many_are_submitted_a_thousand_at_a_time(server: Scripted, client: Client) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        jobs = server.seen[-1].json["jobs"]
        items: list[dict[str, Any]] = [
            {"index": n, "status": 201, "job": {**JOB, "id": f"job_{j['input']}"}, "error": None}
            for n, j in enumerate(jobs)
        ]
        refused = {"title": "No", "errors": [{"loc": "input", "msg": "too odd"}]}
        items[1] |= {"status": 422, "job": None, "error": refused}
        say(200, {"items": items[::-1], "created": 0, "repeated": 0, "refused": 0})(request)

    server(problem(503), answer)
    found = client.submit_many(JobRequest(task="a.b", input=n, tags=["x"]) for n in range(1500))
    assert [len(asked.json["jobs"]) for asked in server.seen] == [1000, 1000, 500]
    assert server.seen[0].body == server.seen[1].body
    keys = {j["idempotency_key"] for asked in server.seen[1:] for j in asked.json["jobs"]}
    assert len(keys) == 1500
    assert [n for n, each in enumerate(found) if not isinstance(each, Job)] == [1, 1001]
    refusal, last = found[1], found[-1]
    assert isinstance(refusal, InvalidRequest)
    assert refusal.errors == [{"loc": "input", "msg": "too odd"}]
    assert isinstance(last, Job)
    assert last.id == "job_1499"


def test_a_batch_is_no_larger_than_a_server_takes(
    server: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        jobs = server.seen[-1].json["jobs"]
        items = [{"index": n, "status": 201, "job": JOB, "error": None} for n in range(len(jobs))]
        say(200, {"items": items})(request)

    monkeypatch.setattr(routes, "BATCH_BYTES", 1000)
    server(answer)
    client.submit_many({"task": "a.b", "input": "x" * size} for size in (400, 400, 2000, 10))
    assert [len(asked.json["jobs"]) for asked in server.seen] == [2, 1, 1]


def test_a_job_of_many_that_had_ended_has_its_result(server: Scripted, client: Client) -> None:
    stub = {"id": "job_1", "status": "succeeded"}
    item = {"index": 0, "status": 200, "job": stub, "error": None}
    server(say(200, {"items": [item]}), say(200, DONE))
    [job] = client.submit_many([{"task": "a.b", "idempotency_key": "k"}])
    assert isinstance(job, Job)
    assert job.error is None
    assert job.result().output == 1


def test_none_are_submitted_without_asking(server: Scripted, client: Client) -> None:
    assert client.submit_many([]) == []
    assert server.seen == []


def test_commands_to_many_are_rehearsed_unless_told_otherwise(
    server: Scripted, client: Client
) -> None:
    said = {"matched": 3, "done": 2, "ids": ["job_1"], "dry_run": True, "more": False, "new": 1}
    since = datetime(2026, 1, 31, tzinfo=UTC)
    server(say(200, said))
    bulk = client.cancel_many(task="a.b", since=since)
    assert (bulk.matched, bulk.done, bulk.ids, bulk.dry_run, bulk.more) == (
        3, 2, ["job_1"], True, False,
    )  # fmt: skip
    client.retry_many(status="failed", dry_run=False, limit=5)
    assert [asked.line for asked in server.seen] == [
        "POST /v1/jobs/cancel", "POST /v1/jobs/retry",
    ]  # fmt: skip
    wanted = {"task": "a.b", "since": "2026-01-31T00:00:00+00:00"}
    assert server.seen[0].json == {"filter": wanted, "dry_run": True, "limit": 1000}
    wanted = {"status": "failed"}
    assert server.seen[1].json == {"filter": wanted, "dry_run": False, "limit": 5}


def test_pauses_are_set_listed_and_ended(server: Scripted, client: Client) -> None:
    pause = {"target": "replicate", "note": "bill"}
    told = {"id": "cmd_1", "status": "applied"}
    server(say(202, told), say(200, {"items": [pause]}), problem(503), say(202, told))
    assert client.pause("replicate", note="bill") == told
    assert client.pauses() == [pause]
    assert client.resume("replicate.predict") == told
    assert server.seen[0].json == pause
    assert server.seen[-1].line == "DELETE /v1/pauses/replicate.predict"


# -- the rest ----------------------------------------------------------------------------------


def test_lists_are_read_page_by_page_as_they_are_used(server: Scripted, client: Client) -> None:
    server(
        say(200, {"items": [JOB, JOB], "next_cursor": "job_0"}),
        say(200, {"items": [DONE], "next_cursor": None}),
    )
    jobs = client.jobs(tag="x")
    next(jobs)
    assert len(server.seen) == 1
    assert [job.status for job in jobs] == ["queued", "succeeded"]
    assert server.seen[1].line == "GET /v1/jobs?tag=x&limit=50&cursor=job_0"


def test_a_download_is_whole_or_not_there(server: Scripted, client: Client, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    half = say(200, b"half", content_length="8")
    server(half)
    with pytest.raises(ServerUnreachable):
        client.download("art_1", target)
    server(problem(404))
    with pytest.raises(NotFound):
        client.download("art_1", target)
    assert list(tmp_path.iterdir()) == []
    server(half, problem(503), say(200, b"whole"))
    assert client.download("art_1", target).read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_an_id_cannot_lead_elsewhere(server: Scripted, client: Client) -> None:
    server(problem(404))
    asking = (client.job, client.delivery, client.replay, client.retry_handler, client.resume)
    for path in asking:
        with pytest.raises(ApiError):
            path("../tasks?x=1#y")
    assert all("/..%2Ftasks%3Fx%3D1%23y" in asked.line for asked in server.seen)


def test_a_key_is_sent_where_there_is_one(server: Scripted) -> None:
    server(say(200, JOB))
    with Client(server.url, "k") as client:
        client.job("job_1")
    assert server.seen[0].headers["authorization"] == "Bearer k"


def test_health_is_told_also_when_it_is_bad(server: Scripted, client: Client) -> None:
    server(say(503, {"status": "unavailable", "missing": ["x"]}))
    assert client.health()["missing"] == ["x"]


def test_no_proxy_stands_between_us_and_this_machine(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    server(say(200, JOB))
    with Client(server.url) as client:
        assert client.job("job_1").status == "queued"


def test_a_closed_client_says_so(server: Scripted) -> None:
    server(say(200, JOB))
    with Client(server.url) as client:
        job = client.job("job_1")
    with pytest.raises(ServerUnreachable, match="closed"):
        next(job.events())


def test_it_loads_nothing_else_of_agentflow() -> None:
    script = "import agentflow.client, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] == "agentflow"}
    by_the_package = {"agentflow", "agentflow.types", "agentflow.errors"}
    assert {n for n in loaded if not n.startswith("agentflow.client")} <= by_the_package
    assert not {"pydantic", "starlette", "tortoise"} & set(done.stdout.split())
