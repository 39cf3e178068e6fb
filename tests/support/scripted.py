"""A server that says what a script tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Answer = Callable[[BaseHTTPRequestHandler], None]

JOB = {
    "id": "job_1", "task": "a.b", "status": "queued", "attempt": 1, "error": None, "result": None,
    "progress": {"fraction": None, "message": None},
}  # fmt: skip
DONE = {**JOB, "status": "succeeded", "result": {"output": 1, "artifacts": [], "new_field": 0}}


class Asked(NamedTuple):
    """`line` is the method and the path with its query; the names of `headers` are lower case."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Scripted:
    """Answers its requests by the script, the last answer again and again; `seen` remembers."""

    def __init__(self) -> None:
        self.script: deque[Answer] = deque()
        self.seen: list[Asked] = []
        self.url = ""

    def __call__(self, *answers: Answer) -> None:
        self.script = deque(answers)
        self.seen.clear()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        headers = {k.lower(): v for k, v in request.headers.items()}
        self.seen.append(Asked(f"{request.command} {request.path}", headers, body))
        reply = self.script[0] if len(self.script) == 1 else self.script.popleft()
        reply(request)


@contextmanager
def scripted() -> Iterator[Scripted]:
    """On a free port of loopback, in threads."""
    made = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        do_POST = do_DELETE = do_GET  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        made.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield made
        finally:
            http.shutdown()
            thread.join()


def say(status: int, body: Any = b"", **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"content-length": str(len(raw)), **names}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(raw)

    return answer


def problem(status: int, retry_after: str | None = None, **more: Any) -> Answer:
    headers = {} if retry_after is None else {"retry_after": retry_after}
    body = {"title": "No", "status": status, "detail": "because", **more}
    return say(status, body, **headers)


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True


def stream(*parts: str) -> Answer:
    """A live stream that ends after these bytes."""
    return say(200, "".join(parts).encode(), content_type="text/event-stream; charset=utf-8")


def broken_stream() -> tuple[Answer, ...]:
    """What is answered to who follows a job: it breaks within the third of four entries, and two
    tries to go on fail."""
    return (
        say(200, JOB),
        stream(": ping\r\n\r\n", entry(0), entry(1), entry(2)[:-40]),
        hang_up,
        problem(503),
        stream(entry(2), entry(3, "succeeded")),
    )


def entry(seq: int, status: str = "waiting", id: str | None = None, **more: Any) -> str:
    """An entry of a history, or of the feed with its cursor as `id`."""
    said = {
        "seq": seq, "job_id": "job_1", "event": "progressed", "source": "webhook",
        "disposition": "applied", "reason": "progressed", "status": status, "said": {},
        "progress": {"fraction": seq / 10, "message": None}, "told_at": "", "more": 1,
        "at": "2026-01-31T12:00:00.000000Z", **more,
    }  # fmt: skip
    data = json.dumps(said, ensure_ascii=False)
    return f"id: {id or seq}\r\nevent: progressed\r\ndata: {data}\r\n\r\n"
