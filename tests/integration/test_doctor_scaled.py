"""`agentflow doctor` on PostgreSQL and Redis: what it says of each thing that is usually wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from support.cli import agentflow
from support.servers import Postgres, RedisServer, free_port

from agentflow import types
from agentflow.cli import backends
from agentflow.cli.finding import Finding
from agentflow.settings import load_settings
from agentflow.store.rights import WEB, WRITER

DATABASES = ("postgres",)


@pytest.fixture
def logins(database: str, postgres: Postgres) -> Iterator[dict[str, str]]:
    """The test's database as each of three logins, the last of which belongs to nobody."""
    name = database.rpartition("/")[2]
    made = agentflow("migrate", "--roles", env={"AGENTFLOW_DATABASE_URL": database})
    assert made.code == 0, made.err
    roles = {"doc_web": WEB, "doc_writer": WRITER, "doc_nobody": None}
    for login, role in roles.items():
        postgres.sql(f"CREATE ROLE {login} LOGIN" + (f" IN ROLE {role}" if role else ""))
    yield {login.removeprefix("doc_"): postgres.url(name, login) for login in roles}
    postgres.drop_database(name)
    for role in (*roles, WEB, WRITER):
        postgres.sql(f"DROP ROLE {role}")


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.config_set("maxmemory-policy", "noeviction")


def found(**settings: Any) -> dict[str, Finding]:
    """What is found, by what was looked at."""
    return {f.check: f for f in backends.backends(load_settings(**settings), None)}


def states(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in findings.items()}


GOOD = {"database": "ok", "clock": "ok", "schema": "ok", "rights": "ok"}


def test_one_process_with_the_owners_login_is_well(database: str) -> None:
    assert states(found(require_keys=False)) == GOOD


def test_roles_with_their_own_logins_are_well(logins: dict[str, str], redis_url: str) -> None:
    settings = {
        "database_url": logins["web"],
        "writer_database_url": logins["writer"],
        "redis_url": redis_url,
    }
    findings = found(**settings, require_keys=False)
    assert states(findings) == {**GOOD, "writer's login": "ok", "Redis": "ok"}
    assert "as doc_web" in findings["database"].said
    alone = found(database_url=logins["writer"], redis_url=redis_url, mode="writer")
    assert alone["rights"].state == "ok"


def test_a_web_login_that_could_write_is_warned_of(logins: dict[str, str], redis_url: str) -> None:
    settings = {"database_url": logins["writer"], "redis_url": redis_url}
    rights = found(**settings, require_keys=False)["rights"]
    assert (rights.state, "DELETE on agentflow_" in rights.said) == ("warn", True)


def test_logins_without_their_rights_fail(logins: dict[str, str], redis_url: str) -> None:
    shared = {"redis_url": redis_url, "require_keys": False}
    nobody = found(database_url=logins["nobody"], **shared)["rights"]
    assert (nobody.state, "doc_nobody has none" in nobody.said) == ("fail", True)
    swapped = found(database_url=logins["web"], writer_database_url=logins["web"], **shared)
    assert swapped["rights"].state == "ok"
    assert (swapped["writer's login"].state, "no DELETE" in swapped["writer's login"].said) == (
        "fail", True,
    )  # fmt: skip
    alone = found(database_url=logins["web"], require_keys=False)["rights"]
    assert alone.state == "fail"


def test_an_old_schema_and_none_at_all_fail(database: str, postgres: Postgres) -> None:
    name = database.rpartition("/")[2]
    postgres.sql("DELETE FROM tortoise_migrations WHERE name LIKE '0002%'", name)
    schema = found()["schema"]
    assert (schema.state, "0002_scale_out" in schema.said) == ("fail", True)
    with postgres.database() as empty:
        schema = found(database_url=empty)["schema"]
    assert (schema.state, "agentflow migrate" in schema.said) == ("fail", True)


def test_a_database_that_is_away_fails_without_its_password() -> None:
    url = f"postgres://me:s3cret@127.0.0.1:{free_port()}/shop"
    findings = found(database_url=url)
    assert states(findings) == {"database": "fail"}
    assert "s3cret" not in findings["database"].said


def test_an_old_postgresql_fails(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "POSTGRES", 99)
    findings = found(require_keys=False)
    assert (findings["database"].state, "99 or later" in findings["database"].said) == (
        "fail", True,
    )  # fmt: skip


@pytest.mark.parametrize("seconds", [-30, 30])
def test_a_clock_that_is_wrong_is_warned_of(
    database: str, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    right = types.utcnow
    monkeypatch.setattr(types, "utcnow", lambda: right() + timedelta(seconds=seconds))
    clock = found(require_keys=False)["clock"]
    assert clock.state == "warn"
    assert clock.said.startswith(("29 s", "30 s"))


def test_keys_are_missed_as_they_are_demanded(database: str) -> None:
    assert found(require_keys=True)["API keys"].state == "fail"
    assert found()["API keys"].state == "warn"
    made = agentflow("keys", "create", "shop", env={"AGENTFLOW_DATABASE_URL": database})
    assert made.code == 0, made.err
    assert found(require_keys=True)["API keys"].state == "ok"


def test_a_redis_that_evicts_fails(database: str, redis_client: redis.Redis) -> None:
    url = f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}/0"
    assert found(redis_url=url)["Redis"].state == "ok"
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    said = found(redis_url=url)["Redis"]
    assert (said.state, "allkeys-lru" in said.said) == ("fail", True)


def test_an_old_redis_fails(database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "REDIS", (99, 0))
    said = found(redis_url=redis_url)["Redis"]
    assert (said.state, "99.0 or later" in said.said) == ("fail", True)


def test_a_redis_that_is_away_or_asks_for_a_password_fails(database: str) -> None:
    assert found(redis_url=f"redis://127.0.0.1:{free_port()}")["Redis"].state == "fail"
    with RedisServer(password="s3cret") as server:
        url = f"redis://:wrong@127.0.0.1:{server.port}"
        said = found(redis_url=url)["Redis"]
    assert (said.state, "wrong" in said.said) == ("fail", False)


def test_a_worker_needs_redis_alone(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTFLOW_DATABASE_URL")
    assert states(found(redis_url=redis_url, mode="worker")) == {"Redis": "ok"}


def test_the_command_shows_it(logins: dict[str, str], redis_url: str, tmp_path: Any) -> None:
    env = {
        "AGENTFLOW_DATABASE_URL": logins["web"],
        "AGENTFLOW_REDIS_URL": redis_url,
        "AGENTFLOW_DATA_DIR": str(tmp_path),
        "AGENTFLOW_PORT": str(free_port()),
    }
    shown = {
        item["check"]: item["state"]
        for item in agentflow("doctor", "--json", env=env).json["items"]
    }
    assert shown.items() >= {**GOOD, "Redis": "ok", "API keys": "warn"}.items()
    unasked = agentflow("doctor", "--offline", "--json", env=env).json["items"]
    assert "database" not in {item["check"] for item in unasked}
