"""The client follows jobs: text and history come whole, over whatever breaks."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from support.scripted import (
    DONE,
    JOB,
    Answer,
    Scripted,
    broken_stream,
    entry,
    hang_up,
    problem,
    say,
    stream,
)

from agentflow.client import Client, ServerUnreachable

DATABASES = ()


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
    server(*broken_stream())
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
