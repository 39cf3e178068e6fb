"""What `agentflow doctor` looks at in PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Literal

from agentflow.cli.finding import Finding

if TYPE_CHECKING:
    from agentflow.settings import Settings
    from agentflow.store.database import Database, Models
    from agentflow.store.sql import Sql

POSTGRES = 14
REDIS = (7, 0)
"""The oldest versions that do."""

APART = 2.0
"""Seconds by which two clocks may differ."""


def backends(settings: Settings, models: Models | None) -> Iterator[Finding]:
    """Findings about the servers that the settings name."""
    if settings.database_url:
        yield from asyncio.run(_database("web", settings, models))
    if settings.writer_database_url:
        yield from asyncio.run(_database("writer", settings, models))
    if settings.redis_url:
        yield _redis(settings.redis_url.get_secret_value())


async def _database(
    role: Literal["web", "writer"], settings: Settings, models: Models | None
) -> list[Finding]:
    """By this role's login; what no login changes is looked at by the web's."""
    from tortoise.connection import get_connection
    from tortoise.exceptions import BaseORMException

    from agentflow.errors import AgentflowError
    from agentflow.store.database import Database, Models
    from agentflow.store.sql import Sql

    database = Database(settings, models or Models(), role=role)
    found: list[Finding] = []
    try:
        await database.open(migrate=False, check=False)
        sql = Sql(get_connection("default"))
        look = _as_web(sql, database, settings) if role == "web" else _as_writer(sql)
        async for finding in look:
            found.append(finding)
    except (BaseORMException, AgentflowError) as error:
        said = f"{database.place} cannot be used: {error}"
        found.append(Finding("database" if role == "web" else "writer's login", "fail", said))
    finally:
        await database.close()
    return found


async def _as_web(sql: Sql, database: Database, settings: Settings) -> AsyncIterator[Finding]:
    from agentflow.types import utcnow

    before = utcnow()
    (row,) = await sql.rows(
        "SELECT current_setting('server_version') AS version, clock_timestamp() AS now,"
        " current_setting('server_version_num')::int / 10000 AS major, current_user AS login"
    )
    after = utcnow()
    said = f"{database.place}, PostgreSQL {row['version']}, as {row['login']}"
    if row["major"] < POSTGRES:
        said += f": agentflow needs {POSTGRES} or later"
    yield Finding("database", "ok" if row["major"] >= POSTGRES else "fail", said)
    yield _clock(max((before - row["now"]).total_seconds(), (row["now"] - after).total_seconds()))
    there = await _there(sql)
    if there is not None:
        yield there
        return
    missing = await database.missing()
    if missing:
        said = f"{', '.join(missing)} is not applied; run: agentflow migrate"
        yield Finding("schema", "fail", said)
        return
    yield Finding("schema", "ok", "up to date")
    yield await _rights(sql, writes=settings.redis_url is None or settings.mode == "writer")
    if settings.require_keys is not False:
        yield await _keys(demanded=settings.require_keys is True)


def _clock(apart: float) -> Finding:
    """`apart`: how far the database's clock is from ours at least, in seconds."""
    if apart <= APART:
        return Finding("clock", "ok", "that of the database is ours")
    said = f"{apart:.0f} s from the database's, by which agentflow goes; set it by NTP"
    return Finding("clock", "warn", said)


async def _there(sql: Sql) -> Finding | None:
    """What keeps this login from seeing the state of the schema."""
    (row,) = await sql.rows(
        "SELECT current_user AS login,"
        " has_table_privilege(to_regclass('tortoise_migrations')::oid, 'SELECT') AS readable"
    )
    if row["readable"]:
        return None
    if row["readable"] is None:
        said = f"there is none that {row['login']} may see; run: agentflow migrate"
        return Finding("schema", "fail", said)
    return Finding("rights", "fail", f"{row['login']} has none; {_MEMBER}")


_MEMBER = "make the role with agentflow migrate --roles, and the login a member of it"


async def _rights(sql: Sql, *, writes: bool) -> Finding:
    """`writes`: the writer goes by this login, for it is alone or all in one process."""
    from agentflow.store.rights import in_words, rights, web_rights, writer_rights

    has, wanted = await rights(sql), writer_rights() if writes else web_rights()
    if wanted - has:
        return Finding("rights", "fail", f"no {in_words(wanted - has)}; {_MEMBER}")
    if has - wanted:
        said = f"{in_words(has - wanted)}: more than the web needs; {_MEMBER}"
        return Finding("rights", "warn", said)
    return Finding("rights", "ok", f"those of the {'writer' if writes else 'web, no more'}")


async def _as_writer(sql: Sql) -> AsyncIterator[Finding]:
    from agentflow.store.rights import in_words, rights, writer_rights

    there = await _there(sql)
    if there is not None:
        yield there._replace(check="writer's login")
        return
    lacking = writer_rights() - await rights(sql)
    said = f"no {in_words(lacking)}; {_MEMBER}" if lacking else "reads and writes"
    yield Finding("writer's login", "fail" if lacking else "ok", said)


async def _keys(*, demanded: bool) -> Finding:
    from agentflow.store.keys import any_key
    from agentflow.types import utcnow

    if await any_key(utcnow()):
        return Finding("API keys", "ok", "there are some")
    said = "there is none, so nobody can come in; make one: agentflow keys create NAME"
    return Finding("API keys", "fail" if demanded else "warn", said)


def _redis(url: str) -> Finding:
    """By INFO alone, which hosted servers allow where they refuse CONFIG."""
    from redis import Redis
    from redis.exceptions import RedisError

    try:
        with Redis.from_url(url, socket_connect_timeout=3.0, socket_timeout=5.0) as client:
            told: Any = client.info()
    except (RedisError, OSError) as error:
        return Finding("Redis", "fail", f"cannot be reached: {error}")
    version, policy = str(told["redis_version"]), told.get("maxmemory_policy", "unknown")
    faults = []
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS:
        faults.append(f"agentflow needs {'.'.join(map(str, REDIS))} or later")
    if policy != "noeviction":
        faults.append(f"maxmemory-policy is {policy} and has to be noeviction, or calls get lost")
    if told.get("role") != "master":
        faults.append("it is a replica, which takes no writes")
    return Finding("Redis", "fail" if faults else "ok", "; ".join([f"version {version}", *faults]))
