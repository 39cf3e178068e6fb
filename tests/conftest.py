"""The servers the tests run against, and the database they run on: `--database`.

A module under `integration` runs on every database, unless its `DATABASES` says otherwise; one
elsewhere runs on none in particular, unless its `DATABASES` names some.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest
from support.buckets import Bucket, S3Server
from support.seeding import seeded
from support.servers import Postgres, RedisServer, ServersMissing, ensure_servers

VARIABLE = "AGENTFLOW_DATABASE_URL"
TEMPLATE = "agentflow_template"
TESTS = Path(__file__).parent


def make_template(url: str) -> None:
    """Give the database that every test's is a copy of its tables."""
    program = [sys.executable, "-m", "agentflow", "migrate", "--json"]
    subprocess.run(program, env={**os.environ, VARIABLE: url}, check=True, capture_output=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=["sqlite", "postgres", "both"],
        default="both",
        help="what the integration tests run on (default: %(default)s)",
    )


def databases(module: ModuleType | None, config: pytest.Config) -> list[str]:
    """Those the module's tests run on, one after the other; none: it does not matter."""
    path = Path(getattr(module, "__file__", None) or "")
    usual = ("sqlite", "postgres") if path.is_relative_to(TESTS / "integration") else ()
    able = getattr(module, "DATABASES", usual)
    chosen = config.getoption("database")
    return [each for each in able if chosen in ("both", each)] or list(able[:1])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kinds = databases(metafunc.module, metafunc.config)
    if len(kinds) > 1:
        metafunc.parametrize("database_kind", kinds, indirect=True, scope="module")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install servers before any test's time runs. Where that fails, the fixture says why."""
    wanted = any(
        "servers" in getattr(item, "fixturenames", ())
        or "postgres" in databases(getattr(item, "module", None), session.config)
        for item in session.items
    )
    if wanted and not session.config.option.collectonly and not _unwanted():
        with suppress(ServersMissing):
            ensure_servers()


def _unwanted() -> bool:
    return os.environ.get("AGENTFLOW_TEST_SERVERS") == "none"


@pytest.fixture(scope="session", autouse=True)
def new_databases_are_copies() -> Iterator[None]:
    with seeded():
        yield


@pytest.fixture(scope="session")
def servers() -> None:
    """The programs are installed."""
    if _unwanted():
        pytest.skip("AGENTFLOW_TEST_SERVERS=none")
    try:
        ensure_servers()
    except ServersMissing as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def postgres(servers: None) -> Iterator[Postgres]:
    """One for all tests: who wants to kill one makes one."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(servers: None) -> Iterator[RedisServer]:
    """One for all tests: who wants to kill one makes one."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis(servers: None) -> Iterator[RedisServer]:
    """The test's own, to be killed."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for all tests: who wants to kill one makes one."""
    with S3Server() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty one, to which the environment leads."""
    made = s3_server.bucket()
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    postgres.create_database(TEMPLATE)
    make_template(postgres.url(TEMPLATE))
    return TEMPLATE


class Copies:
    """Databases like the template. A copy takes as long as a short test, so the next is made
    while a test runs."""

    def __init__(self, server: Postgres, template: str) -> None:
        self._server, self._template = server, template
        self._numbers = itertools.count(1)
        self._maker = ThreadPoolExecutor(1, "copies")
        self._next = self._maker.submit(self._make)

    def _make(self) -> str:
        name = f"copy_{next(self._numbers)}"
        self._server.create_database(name, self._template)
        return name

    @contextmanager
    def one(self) -> Iterator[str]:
        """The URL of a new database, dropped in the end."""
        ready, self._next = self._next, self._maker.submit(self._make)
        name = ready.result()
        try:
            yield self._server.url(name)
        finally:
            self._server.start()  # whatever the test did to it
            self._server.drop_database(name)

    def close(self) -> None:
        self._maker.shutdown()


@pytest.fixture(scope="session")
def copies(postgres: Postgres, template: str) -> Iterator[Copies]:
    with closing(Copies(postgres, template)) as made:
        yield made


@pytest.fixture
def database_url(copies: Copies) -> Iterator[str]:
    """A database of the test's own."""
    with copies.one() as url:
        yield url


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis."""
    redis_server.start()  # in case a test left it paused
    redis_server.flush()
    return redis_server.url()


@pytest.fixture(scope="module")
def database_kind(request: pytest.FixtureRequest) -> str | None:
    """`sqlite`, `postgres`, or None where it does not matter."""
    kinds = databases(request.module, request.config)
    kind: str | None = getattr(request, "param", kinds[0] if kinds else None)
    return kind


@pytest.fixture(autouse=True)
def database(request: pytest.FixtureRequest, database_kind: str | None) -> Iterator[str | None]:
    """The test's database as agentflow's settings name it; None on SQLite, which needs no name."""
    if database_kind is None or "module_database" in request.fixturenames:
        yield None
        return
    with _database(request, database_kind) as url:
        yield url


@pytest.fixture(scope="module")
def module_database(
    request: pytest.FixtureRequest, database_kind: str | None
) -> Iterator[str | None]:
    """One database for all tests of the module: for servers that last as long."""
    with _database(request, database_kind) as url:
        yield url


@contextmanager
def _database(request: pytest.FixtureRequest, kind: str | None) -> Iterator[str | None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        if kind != "postgres":
            yield None
            return
        copies: Copies = request.getfixturevalue("copies")
        with copies.one() as url:
            patch.setenv(VARIABLE, url)
            yield url
