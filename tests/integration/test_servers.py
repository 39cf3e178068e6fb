"""The servers of the tests: they come back from anything, and they leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis
from support import processes, programs
from support.servers import (
    Postgres,
    RedisServer,
    ServerFailed,
    ServersMissing,
    ensure_servers,
    missing,
)

DATABASES = ()
TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("servers")


@pytest.fixture(scope="module")
def durable(servers: None) -> Iterator[Postgres]:
    with Postgres(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def own_redis(servers: None) -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def connected(url: str, **options: float) -> redis.Redis:
    return redis.Redis.from_url(url, retry=None, decode_responses=True, **options)


# PostgreSQL


async def test_committed_rows_outlive_a_kill_and_open_ones_do_not(durable: Postgres) -> None:
    durable.sql("CREATE TABLE kept (n int)")
    connection = await asyncpg.connect(durable.url())
    await connection.execute("INSERT INTO kept VALUES (1)")
    await connection.execute("BEGIN; INSERT INTO kept VALUES (2)")
    family = processes.family(durable.pid)
    assert len(family) > 2
    durable.kill()
    assert not processes.running().keys() & set(family)
    connection.terminate()
    url = durable.url()
    durable.start()
    assert durable.url() == url
    assert durable.sql("SELECT n FROM kept") == "1"
    assert "automatic recovery" in durable.log


def test_settings_are_in_force(durable: Postgres, postgres: Postgres) -> None:
    assert (durable.sql("SHOW fsync"), postgres.sql("SHOW fsync")) == ("on", "off")
    assert postgres.sql("SHOW max_connections") == "200"
    with Postgres(work_mem="5MB") as other:
        assert other.sql("SHOW work_mem") == "5MB"


async def test_a_restart_sends_clients_away(durable: Postgres) -> None:
    connection = await asyncpg.connect(durable.url())
    durable.restart()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()
    assert durable.sql("SELECT 1") == "1"


async def test_a_paused_postgres_is_silent_and_goes_on(durable: Postgres) -> None:
    connection = await asyncpg.connect(durable.url())
    try:
        durable.pause()
        with pytest.raises(TimeoutError):
            await asyncpg.connect(durable.url(), timeout=0.1)
        durable.resume()
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()


@pytest.mark.parametrize("ending", [Postgres.stop, Postgres.kill])
def test_a_paused_postgres_can_be_ended(durable: Postgres, ending: object) -> None:
    durable.pause()
    assert callable(ending)
    ending(durable)
    assert not durable.running
    durable.start()
    assert durable.sql("SELECT 1") == "1"


async def test_a_new_database_is_a_copy_of_its_template(postgres: Postgres) -> None:
    with postgres.database() as template:
        name = template.rpartition("/")[2]
        postgres.sql("CREATE TABLE notes (n int)", name)
        with postgres.database(name) as first, postgres.database(name) as second:
            one, two = await asyncpg.connect(first), await asyncpg.connect(second)
            await one.execute("INSERT INTO notes VALUES (1)")
            assert await two.fetchval("SELECT count(*) FROM notes") == 0
            await two.close()  # `one` is still there when its database goes
    assert name not in postgres.sql("SELECT datname FROM pg_database").split()
    one.terminate()


async def test_roles_come_in_by_name(database_url: str, postgres: Postgres) -> None:
    name = database_url.rpartition("/")[2]
    postgres.sql("CREATE ROLE guest LOGIN")
    connection = await asyncpg.connect(postgres.url(name, user="guest"))
    assert await connection.fetchval("SELECT current_user") == "guest"
    await connection.close()
    postgres.sql("DROP ROLE guest")


def test_what_postgres_refuses_is_said(postgres: Postgres) -> None:
    with pytest.raises(ServerFailed, match='relation "nothing" does not exist'):
        postgres.sql("SELECT * FROM nothing")


def test_a_start_that_fails_says_why_and_leaves_nothing() -> None:
    server = Postgres(no_such_setting="1")
    with pytest.raises(ServerFailed, match="no_such_setting"), server:
        pass
    assert not server.folder.exists()


# Redis


def test_what_redis_answered_outlives_a_kill_and_a_stop(own_redis: RedisServer) -> None:
    with connected(own_redis.url()) as client:
        client.set("kept", "1")
        own_redis.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("kept")
        own_redis.start()
        assert client.get("kept") == "1"
        own_redis.restart()
    with connected(own_redis.url()) as client:
        assert client.get("kept") == "1"


def test_redis_comes_back_empty_when_told(own_redis: RedisServer) -> None:
    with connected(own_redis.url()) as client:
        client.set("gone", "1")
    own_redis.restart(keep=False)
    with connected(own_redis.url()) as client:
        assert client.dbsize() == 0


def test_a_flush_empties_every_database(redis_server: RedisServer, redis_url: str) -> None:
    with (
        connected(redis_server.url(db=3)) as third,
        connected(redis_url) as r,
    ):
        third.set("a", "1")
        r.set("b", "1")
        redis_server.flush()
        assert (third.dbsize(), r.dbsize()) == (0, 0)
        assert r.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_paused_redis_is_silent_and_goes_on(own_redis: RedisServer) -> None:
    with connected(own_redis.url(), socket_timeout=0.1) as client:
        client.set("a", "1")
        own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("a")
        own_redis.resume()
    with connected(own_redis.url()) as client:
        assert client.get("a") == "1"


def test_a_password_is_asked_for() -> None:
    with RedisServer(password="s3cret") as server:
        server.flush()
        with connected(server.url()) as client:
            assert client.ping()
        with (
            connected(f"redis://127.0.0.1:{server.port}") as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


# What they leave behind


def test_close_leaves_no_process_and_no_file() -> None:
    with RedisServer() as server, Postgres() as other:
        pids = {server.pid, *processes.family(other.pid)}
    assert not processes.running().keys() & pids
    assert not server.folder.exists()
    assert not other.folder.exists()


STARTED = """
import os, signal, sys
from support.servers import Postgres, RedisServer

one, two = Postgres(), RedisServer()
one.start(), two.start()
one.pause()
print(one.pid, two.pid, one.folder, two.folder, flush=True)
signal.pause() if sys.argv[1] == "wait" else None
"""


@pytest.mark.parametrize("ending", [None, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_servers_end_with_the_process_that_made_them(ending: signal.Signals | None) -> None:
    command = [sys.executable, "-c", STARTED, "wait" if ending else "end"]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        *pids, one, two = process.stdout.readline().split()
        if ending:
            process.send_signal(ending)
    left = set(map(int, pids))
    processes.until(lambda: left.isdisjoint(processes.running()), "the servers to end")
    processes.until(lambda: not Path(one).exists() and not Path(two).exists(), "their folders")


# Where they come from


def test_what_is_missing_is_said_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() is None
    monkeypatch.setattr(programs, "ELSEWHERE", ())
    monkeypatch.setenv("PATH", "")
    said = missing()
    assert said is not None
    for word in ("PostgreSQL 13", "Redis 7.0", "apt-get install", "brew install"):
        assert word in said
    with pytest.raises(ServersMissing, match="not found here"):
        ensure_servers()


@pytest.mark.parametrize(
    ("says", "found"), [("Redis server v=6.0.16", False), ("Valkey server v=8.1.1", True)]
)
def test_an_old_server_is_not_taken(
    says: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "valkey-server"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.REDIS.path() == (program if found else None)


@pytest.mark.parametrize("works", [True, False])
def test_root_on_debian_installs_them_without_starting_any(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, log = tmp_path / "policy-rc.d", tmp_path / "log"
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\n"{policy}"; echo "$? $*" >> "{log}"\necho broken >&2\nexit 100\n')
    apt.chmod(0o755)
    # Asked first, again when it is this process's turn to install, and after that.
    answers = iter(["These are missing."] * (2 if works else 4))
    monkeypatch.setattr(programs, "missing", lambda: next(answers, None))
    monkeypatch.setattr(programs, "POLICY", policy)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    programs._install.cache_clear()
    try:
        if works:
            ensure_servers()
        else:
            with pytest.raises(ServersMissing, match=r"missing\. apt-get ended with 100: broken"):
                ensure_servers()
    finally:
        programs._install.cache_clear()
    update, install = log.read_text().splitlines()
    assert update.startswith("101 ")
    assert update.endswith(" update")
    assert install.endswith(" install -y --no-install-recommends postgresql redis-server")
    assert not policy.exists()


# What the tests run on

TOLD = """
import os
import pytest

def test_told(database, request):
    assert database == os.environ.get("AGENTFLOW_DATABASE_URL")
    print("told", request.node.nodeid, (database or "none").partition(":")[0])
"""
SHARED = """
import os
import pytest

@pytest.fixture(scope="module")
def world(module_database):
    return module_database

@pytest.mark.parametrize("n", [1, 2])
def test_shared(world, n, request):
    assert world == os.environ.get("AGENTFLOW_DATABASE_URL")
    print("told", request.node.nodeid, (world or "none").rpartition("/")[2])
"""


def told(tests: Path, database: str) -> list[str]:
    ours = str(TESTS.parent / "pyproject.toml")
    command = [sys.executable, "-m", "pytest", "-c", ours, "--rootdir", str(tests), str(tests)]
    done = subprocess.run(
        [*command, "-s", "-p", "no:cacheprovider", f"--database={database}"],
        env={**os.environ, "AGENTFLOW_DATABASE_URL": "postgres://nobody"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.partition("told ")[2] for line in done.stdout.splitlines() if "told " in line]


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """Tests under the same conftest."""
    modules = {
        "integration/test_any.py": TOLD,
        "integration/test_lite.py": f"DATABASES = ('sqlite',)\n{TOLD}",
        "integration/test_shared.py": SHARED,
        "acceptance/test_both.py": f"DATABASES = ('sqlite', 'postgres')\n{TOLD}",
        "acceptance/test_no_matter.py": "def test_it(database): assert database is None",
    }
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(TESTS / "conftest.py", tmp_path)
    return tmp_path


def test_on_sqlite_nothing_is_named(some: Path) -> None:
    assert told(some, "sqlite") == [
        "acceptance/test_both.py::test_told none",
        "integration/test_any.py::test_told none",
        "integration/test_lite.py::test_told none",
        "integration/test_shared.py::test_shared[1] none",
        "integration/test_shared.py::test_shared[2] none",
    ]


def test_on_both_each_test_runs_on_each_that_suits_it(some: Path) -> None:
    assert told(some, "both") == [
        "acceptance/test_both.py::test_told[sqlite] none",
        "acceptance/test_both.py::test_told[postgres] postgres",
        "integration/test_any.py::test_told[sqlite] none",
        "integration/test_any.py::test_told[postgres] postgres",
        "integration/test_lite.py::test_told none",
        "integration/test_shared.py::test_shared[sqlite-1] none",
        "integration/test_shared.py::test_shared[sqlite-2] none",
        "integration/test_shared.py::test_shared[postgres-1] copy_3",
        "integration/test_shared.py::test_shared[postgres-2] copy_3",
    ]


def test_on_postgres_ids_stay_as_they_are(some: Path) -> None:
    assert told(some, "postgres")[:3] == [
        "acceptance/test_both.py::test_told postgres",
        "integration/test_any.py::test_told postgres",
        "integration/test_lite.py::test_told none",
    ]
