"""Several processes that write to one PostgreSQL database, at the same jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import orjson
from support.cli import PROGRAM, agentflow, clean
from support.fakes import Fake, deliver, rows, running, until
from support.servers import Postgres

DATABASES = ("postgres",)
JOBS = 40
TESTS = Path(__file__).parents[1]
SERIOUS = ("Poison", "A batch failed", "cannot write", "Handler failed", "Traceback")


class Contender:
    """A process of `support.contending`; `log` is its standard error so far."""

    def __init__(
        self, jobs: int, folder: Path, program: str = "support.contending", **env: str
    ) -> None:
        self.log_file = folder / "log"
        folder.mkdir()
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, str(jobs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=clean(AGENTFLOW_DATA_DIR=str(folder), **env),
                cwd=TESTS,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def says(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        while " [" in said:  # a line of the log
            said = self.process.stdout.readline().strip()
        assert said, self.log
        return said

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def ends(self) -> int:
        return self.process.wait(60)


@contextmanager
def contender(
    jobs: int, folder: Path, url: str, program: str = "support.contending", **env: str
) -> Iterator[Contender]:
    env |= {"AGENTFLOW_DATABASE_URL": url, "AGENTFLOW_PUBLIC_URL": "http://agentflow.test"}
    one = Contender(jobs, folder, program, **env)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def test_three_processes_at_the_same_jobs_lose_nothing_and_do_nothing_twice(
    database: str, postgres: Postgres, tmp_path: Path
) -> None:
    name = database.rpartition("/")[2]
    with ExitStack() as stack:
        three = [
            stack.enter_context(contender(JOBS, tmp_path / f"{n}", database)) for n in range(3)
        ]
        for step in ("ready", "done"):
            for each in three:
                assert each.says() == step
            for each in three:
                each.tell()
        assert [each.ends() for each in three] == [0, 0, 0]
        for each in three:
            assert [line for line in SERIOUS if line in each.log] == [], each.log

    def count(rest: str) -> int:
        return int(postgres.sql(f"SELECT count(*) FROM {rest}", name))

    assert count("agentflow_jobs") == JOBS
    assert count("agentflow_jobs WHERE finished_at IS NULL") == 0
    assert count("note WHERE text LIKE 'job_%'") == JOBS, "each handler once"
    succeeded = count("agentflow_jobs WHERE status = 'succeeded'")
    assert count("note WHERE text LIKE 'later %'") == succeeded > 0
    assert count("agentflow_handler_runs WHERE status <> 'done'") == 0
    assert count("agentflow_inbox WHERE status IN ('received', 'failed')") == 0
    assert count("agentflow_attempts WHERE number = 2") > 0, "some were tried again"
    deadlocks = f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'"
    assert postgres.sql(deadlocks) == "0"
    audit = agentflow("audit", env={"AGENTFLOW_DATABASE_URL": database})
    assert audit.code == 0, audit.out + audit.err


def test_three_processes_never_overspend_one_budget(
    database: str, postgres: Postgres, tmp_path: Path
) -> None:
    name, cap, step = database.rpartition("/")[2], 10, 10**10
    postgres.sql(
        "INSERT INTO agentflow_budgets (id, tenant, tag, period, currency, cap, per_call, since,"
        f" spent, reserved, created_at) VALUES ('bud_1', 'default', '', 'total', 'USD',"
        f" {cap * step}, {step}, '', 0, 0, now())",
        name,
    )
    with ExitStack() as stack:
        three = [
            stack.enter_context(contender(15, tmp_path / f"{n}", database, "support.spending"))
            for n in range(3)
        ]
        for step_ in ("ready", "done"):
            for each in three:
                assert each.says() == step_
            for each in three:
                each.tell()
        assert [each.ends() for each in three] == [0, 0, 0]
        for each in three:
            assert [line for line in SERIOUS if line in each.log] == [], each.log
    sums = "SELECT sum(amount) || ' ' || count(*) FROM agentflow_usage"
    amount, calls = map(int, postgres.sql(sums, name).split())
    assert (cap - 1) * step < amount <= cap * step, "as much as fits, and not more"
    budget = "SELECT spent || ' ' || reserved FROM agentflow_budgets"
    assert postgres.sql(budget, name) == f"{amount} 0"
    over = "SELECT count(*) FROM agentflow_jobs WHERE reason = 'over_budget'"
    assert int(postgres.sql(over, name)) == 45 - calls
    audit = agentflow("audit", env={"AGENTFLOW_DATABASE_URL": database})
    assert audit.code == 0, audit.out + audit.err


async def test_a_process_that_stands_still_in_a_transaction_holds_nobody_up_for_long(
    database: str, tmp_path: Path
) -> None:
    short = {"AGENTFLOW_TRANSACTION_LIMIT": "1", "AGENTFLOW_HANDLER_TIMEOUT": "0.2"}
    with contender(0, tmp_path / "frozen", database, **short) as frozen:
        held = frozen.says()
        frozen.tell()
        pid, status = os.waitpid(frozen.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), frozen.log
        async with running(tmp_path / "alive", Fake(webhooks="account")) as app:
            free = await app.submit("fake.work", {})
            await until(app, free.id, "waiting")
            await deliver(app, fact(free.id), id="free")
            await until(app, free.id, "succeeded")
            assert await locked(held), "that was meanwhile"
            await deliver(app, fact(held), id="held")
            await until(app, held, "succeeded", seconds=10)
            os.kill(pid, signal.SIGCONT)
            frozen.tell()
            assert frozen.says() == "done"
            assert frozen.ends() == 0


def fact(job: str) -> bytes:
    return orjson.dumps([{"id": f"ext-{job}-1", "event": "succeeded"}])


async def locked(job: str) -> bool:
    found = await rows(f"SELECT id FROM agentflow_jobs WHERE id = '{job}' FOR UPDATE SKIP LOCKED")
    return not found


def test_whoever_migrates_at_once_finds_one_schema(postgres: Postgres) -> None:
    with postgres.database() as url:
        name = url.rpartition("/")[2]
        four = [
            subprocess.Popen(
                [PROGRAM, "migrate", "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=clean(AGENTFLOW_DATABASE_URL=url),
            )
            for _ in range(4)
        ]
        ends = [each.communicate(timeout=60) for each in four]
        assert [each.returncode for each in four] == [0] * 4, ends
        applied = [orjson.loads(out)["applied"] for out, _ in ends]
        assert sorted(map(bool, applied)) == [False, False, False, True], "one did all of it"
        known = postgres.sql("SELECT app || '.' || name FROM tortoise_migrations", name)
        assert sorted(known.splitlines()) == sorted(chain.from_iterable(applied))
