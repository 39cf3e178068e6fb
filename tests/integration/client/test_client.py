"""The client with many jobs at once, with lists and files, and by itself."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.scripted import DONE, JOB, Scripted, problem, say

from agentflow.client import (
    ApiError,
    Client,
    InvalidRequest,
    Job,
    JobRequest,
    NotFound,
    ServerUnreachable,
    routes,
)

DATABASES = ()


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
