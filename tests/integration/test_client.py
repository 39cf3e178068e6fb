"""The client against a server that misbehaves on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentflow.client import (
    ApiError,
    Client,
    JobFailed,
    JobTimeout,
    ServerUnreachable,
    wire,
)

JOB = {
    "id": "job_1", "task": "a.b", "status": "queued", "attempt": 1, "error": None, "result": None,
    "progress": {"fraction": None, "message": None},
}  # fmt: skip
DONE = {**JOB, "status": "succeeded", "result": {"output": 1, "artifacts": [], "new_field": 0}}

Answer = Callable[[BaseHTTPRequestHandler], None]


class Scripted:
    """Answers its requests by the script, the last answer again and again; `seen` remembers."""

    def __init__(self) -> None:
        self.script: deque[Answer] = deque()
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""

    def __call__(self, *answers: Answer) -> None:
        self.script = deque(answers)
        self.seen.clear()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        headers = {k.lower(): v for k, v in request.headers.items()}
        self.seen.append((f"{request.command} {request.path}", headers, body))
        reply = self.script[0] if len(self.script) == 1 else self.script.popleft()
        reply(request)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setattr(wire, "PAUSE", 0.01)
    scripted = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scripted.answer(self)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        scripted.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield scripted
        http.shutdown()
        thread.join()


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def say(status: int, body: Any, **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"content-length": str(len(raw)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(raw)

    return answer


def problem(status: int, **more: Any) -> Answer:
    return say(status, {"title": "No", "status": status, "detail": "because", **more})


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True


def stream(*parts: str) -> Answer:
    """A live stream that ends after these bytes."""
    return say(200, "".join(parts).encode(), **{"content-type": "text/event-stream"})


def entry(seq: int, status: str = "waiting", **more: Any) -> str:
    said = {
        "seq": seq, "job_id": "job_1", "event": "progressed", "source": "webhook",
        "disposition": "applied", "reason": "progressed", "status": status, "said": {},
        "progress": {"fraction": seq / 10, "message": None}, "told_at": "", "more": 1,
        "at": "2026-01-31T12:00:00.000000Z", **more,
    }  # fmt: skip
    return f"id: {seq}\r\nevent: progressed\r\ndata: {json.dumps(said, ensure_ascii=False)}\r\n\r\n"


# -- repeating ---------------------------------------------------------------------------------


def test_a_submit_is_repeated_under_one_key(server: Scripted, client: Client) -> None:
    server(problem(503), hang_up, say(201, JOB))
    assert client.submit("a.b", {"x": 1}).id == "job_1"
    keys = {headers["idempotency-key"] for _, headers, _ in server.seen}
    bodies = {body for _, _, body in server.seen}
    assert (len(server.seen), len(keys), len(bodies)) == (3, 1, 1)


def test_two_submits_have_two_keys_and_a_given_one_is_used(
    server: Scripted, client: Client
) -> None:
    server(say(201, JOB))
    client.submit("a.b")
    client.submit("a.b")
    client.submit("a.b", idempotency_key="mine")
    keys = [headers["idempotency-key"] for _, headers, _ in server.seen]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_what_would_make_a_second_job_is_not_repeated(server: Scripted, client: Client) -> None:
    server(say(200, DONE), hang_up, say(201, JOB))
    job = client.job("job_1")
    with pytest.raises(ServerUnreachable):
        job.retry()
    server(problem(503), say(202, {"id": "cmd_1", "status": "applied"}))
    with pytest.raises(ServerUnreachable, match="because"):
        client.replay("dlv_1")
    assert len(server.seen) == 1


def test_a_refusal_is_not_repeated(server: Scripted, client: Client) -> None:
    server(problem(422, errors=[{"loc": "task", "msg": "unknown"}]))
    with pytest.raises(ApiError) as caught:
        client.submit("a.b")
    assert (caught.value.status, caught.value.errors[0]["loc"]) == (422, "task")
    assert len(server.seen) == 1


def test_repeats_end(server: Scripted) -> None:
    server(problem(503))
    with Client(server.url, repeats=2) as client, pytest.raises(ServerUnreachable):
        client.job("job_1")
    assert len(server.seen) == 3


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


# -- waiting and following ---------------------------------------------------------------------


def test_result_waits_and_gives_what_the_job_came_to(server: Scripted, client: Client) -> None:
    server(say(200, JOB), say(200, JOB), say(200, DONE))
    assert client.job("job_1").result(timeout=60).output == 1
    assert "wait=" in server.seen[1][0]


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


def test_result_gives_up_at_its_timeout(server: Scripted, client: Client) -> None:
    server(say(200, JOB))
    with pytest.raises(JobTimeout, match="still queued"):
        client.job("job_1").result(timeout=0.05)


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
    assert server.seen[1][1].get("last-event-id") is None
    assert [headers["last-event-id"] for _, headers, _ in server.seen[2:]] == ["1", "1", "1"]


def test_following_a_job_that_is_over_ends(server: Scripted, client: Client) -> None:
    server(say(200, DONE), stream(), say(200, DONE))
    assert list(client.job("job_1").events(after=7)) == []


def test_a_stream_that_never_says_anything_ends_in_an_error(
    server: Scripted, client: Client
) -> None:
    server(say(200, JOB))
    job = client.job("job_1")
    server(hang_up)
    with pytest.raises(ServerUnreachable):
        list(job.events())


def test_line_separators_within_json_do_not_end_a_line(server: Scripted, client: Client) -> None:
    odd = "a\u2028b\x85c"
    server(say(200, JOB), stream(entry(0, "failed", said={"text": odd})))
    [event] = client.job("job_1").events()
    assert event.said == {"text": odd}


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
    assert server.seen[1][0] == "GET /v1/jobs?tag=x&limit=50&cursor=job_0"


def test_a_download_is_whole_or_not_there(server: Scripted, client: Client, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    server(say(200, b"half", **{"content-length": "8"}))
    with pytest.raises(ServerUnreachable):
        client.download("art_1", target)
    server(problem(404))
    with pytest.raises(ApiError):
        client.download("art_1", target)
    assert list(tmp_path.iterdir()) == []
    server(say(200, b"whole"))
    assert client.download("art_1", target).read_bytes() == b"whole"


def test_an_id_cannot_lead_elsewhere(server: Scripted, client: Client) -> None:
    server(problem(404))
    for path in (client.job, client.delivery, client.replay, client.retry_handler):
        with pytest.raises(ApiError):
            path("../tasks?x=1#y")
    assert all("/..%2Ftasks%3Fx%3D1%23y" in asked for asked, _, _ in server.seen)


def test_a_key_is_sent_where_there_is_one(server: Scripted) -> None:
    server(say(200, JOB))
    with Client(server.url, "k") as client:
        client.job("job_1")
    assert server.seen[0][1]["authorization"] == "Bearer k"


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
