"""`python -m tests.benchmarks.scale_out`: what one job costs each process, on PostgreSQL and Redis.

One web, one writer, one worker and both servers on this machine; jobs come in batches of 500, so
that the client costs little. CPU is user and system time from /proc, the steadiest figure there
is on a shared machine. `fsync` is on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agentflow import AgentFlow, Client

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.servers import Postgres, RedisServer, ensure_servers, free_port

BATCH = 500
TICKS = os.sysconf("SC_CLK_TCK")

app = AgentFlow(plugins=[])


@app.task("bench.call")
async def call(call: object, input: object) -> dict[str, int]:
    return {"n": 1}


def cpu(pids: list[int]) -> float:
    """Seconds of user and system time so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])
    return total / TICKS


def family(pid: int) -> list[int]:
    """A process and its children, and theirs."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


@contextmanager
def role(name: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--open"] if name == "serve" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "agentflow", name, *options],
        env={**os.environ, **env},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def ready(client: Client) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            client.submit("bench.call", {}).result(timeout=20)
            return
        except Exception:
            time.sleep(0.2)
    raise TimeoutError("the roles did not start")


def burst(client: Client, jobs: int) -> float:
    """Submit them all and wait for the last; seconds."""
    began = time.monotonic()
    sent: list[object] = []
    for start in range(0, jobs, BATCH):
        these = [{"task": "bench.call", "input": {}} for _ in range(min(BATCH, jobs - start))]
        sent += client.submit_many(these)
    while any(next(client.jobs(status=s, page=1), None) for s in ("queued", "running")):
        time.sleep(0.05)
    assert len(sent) == jobs
    return time.monotonic() - began


def main(jobs: int) -> None:
    ensure_servers()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        postgres = stack.enter_context(Postgres(durable=True))
        redis = stack.enter_context(RedisServer())
        postgres.create_database("bench")
        port = free_port()
        env = {
            "AGENTFLOW_DATABASE_URL": postgres.url("bench"),
            "AGENTFLOW_REDIS_URL": redis.url(),
            "AGENTFLOW_DATA_DIR": folder,
            "AGENTFLOW_PORT": str(port),
            "AGENTFLOW_APP": "tests.benchmarks.scale_out:app",
        }
        subprocess.run(
            [sys.executable, "-m", "agentflow", "migrate"],
            env={**os.environ, **env},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        roles = {n: stack.enter_context(role(n, env)) for n in ("serve", "writer", "worker")}
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}"))
        ready(client)
        burst(client, BATCH)
        trees = {name: family(process.pid) for name, process in roles.items()}
        trees |= {"postgres": family(postgres.pid), "redis": family(redis.pid)}
        before = {name: cpu(pids) for name, pids in trees.items()}
        seconds = burst(client, jobs)
        print(f"{jobs} jobs in batches of {BATCH}: {jobs / seconds:.0f} jobs/s")
        spent = {name: (cpu(pids) - before[name]) / jobs * 1000 for name, pids in trees.items()}
        for name, ms in spent.items():
            print(f"  {name:<9} {ms:6.2f} ms of CPU per job")
        print(f"  {'all':<9} {sum(spent.values()):6.2f}")
        began = time.monotonic()
        for _ in range(50):
            client.submit("bench.call", {}).result(timeout=10)
        print(f"  one at a time: {(time.monotonic() - began) / 50 * 1000:.1f} ms, submit to result")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
