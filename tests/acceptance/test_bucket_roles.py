"""Web, worker and writer as processes that share nothing but PostgreSQL, Redis and a bucket."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from support.buckets import Bucket
from support.cli import PROGRAM, clean
from support.scripted import scripted
from support.servers import free_port

CONTENT = bytes(range(256)) * 60_000

APP = """
import os
from agentflow import AgentFlow, Artifact, Policy, Provider, Result

maker = Provider("maker")

@maker.task("make", policy=Policy(lease=1.0, files_live=600))
async def make(call, input):
    return Result(artifacts=[Artifact(os.environ["SOURCE"], "out.bin")])

app = AgentFlow(providers=[maker], plugins=[])
"""


@contextmanager
def role(folder: Path, *args: str, ready: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`agentflow ROLE …` once it says that it is ready; killed in the end."""
    folder.mkdir()
    log = folder / "log"
    command = [PROGRAM, *args, "--app", "shop:app", "--data", str(folder / "data")]
    environ = clean(**env, PYTHONPATH=str(folder.parent))
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stderr=file, env=environ, cwd=folder.parent) as process,
    ):
        try:
            until(lambda: ready in log.read_text() or process.poll() is not None, ready)
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.kill()


def until(true: Callable[[], object], what: str, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.mark.timeout(180)
def test_a_worker_killed_in_an_upload_leaves_nothing_to_see_and_another_does_it_again(
    tmp_path: Path, bucket: Bucket, database_url: str, redis_url: str
) -> None:
    slow = threading.Event()
    slow.set()

    def answer(request: BaseHTTPRequestHandler) -> None:
        """The file, at 2 MB/s while `slow` is set."""
        request.send_response(200)
        request.send_header("content-length", str(len(CONTENT)))
        request.end_headers()
        for start in range(0, len(CONTENT), 100_000):
            request.wfile.write(CONTENT[start : start + 100_000])
            if slow.is_set():
                time.sleep(0.05)

    (tmp_path / "shop.py").write_text(APP)
    port = free_port()
    with scripted() as source:
        source(answer)
        worker = {
            **bucket.environ,
            "SOURCE": f"{source.url}/out.bin",
            "AGENTFLOW_ALLOW_DOWNLOADS": f'["{source.url.removeprefix("http://")}"]',
            "AGENTFLOW_ARTIFACTS_URL": bucket.url,
            "AGENTFLOW_REDIS_URL": redis_url,
        }
        others = {**worker, "AGENTFLOW_DATABASE_URL": database_url, "AGENTFLOW_PORT": str(port)}
        with (
            role(tmp_path / "writer", "writer", ready="is a writer", **others),
            role(tmp_path / "web", "serve", "--open", ready="serves http", **others),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
        ):
            with role(tmp_path / "first", "worker", ready="is a worker", **worker) as first:
                made = http.post("/v1/jobs", json={"task": "maker.make", "input": {}})
                path = f"/v1/jobs/{made.json()['id']}"
                until(bucket.uploads, "an upload to begin")
                first.kill()
                first.wait()
            assert (bucket.keys(), len(bucket.uploads())) == ([], 1)
            assert http.get(path).json()["phase"] == "collecting"
            slow.clear()
            with role(tmp_path / "second", "worker", ready="is a worker", **worker):
                until(lambda: http.get(path).json()["finished_at"], "the job to end", 90)
            job = http.get(path).json()
            (file,) = job["result"]["artifacts"]
            answer_of_web = http.get(file["url"])
            audit = subprocess.run(
                [PROGRAM, "audit"], env=clean(**others), capture_output=True, text=True
            )
    assert (job["status"], file["status"]) == ("succeeded", "stored")
    assert len(bucket.keys()) == 1
    assert hashlib.sha256(answer_of_web.content).hexdigest() == file["sha256"]
    assert answer_of_web.content == CONTENT
    assert audit.returncode == 0, audit.stdout + audit.stderr
    left = [p.name for p in tmp_path.rglob("*") if p.name.startswith("artifacts")]
    assert left == [], f"{sys.platform}: files belong into the bucket alone"
