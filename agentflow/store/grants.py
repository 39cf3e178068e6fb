"""Giving PostgreSQL's roles their rights: what `agentflow migrate --roles` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from tortoise.connection import get_connection

from agentflow.errors import SettingsError
from agentflow.store.database import MIGRATION_LOCK
from agentflow.store.rights import (
    INSERTED,
    WEB,
    WRITER,
    WRITES,
    in_words,
    models,
    our_tables,
    rights_of,
    rights_query,
    web_rights,
    writer_rights,
)

MIGRATIONS = "tortoise_migrations"


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the server knows it; all names are quoted where they must be."""

    schema: str
    name: str
    sequences: Sequence[str]


async def grant_roles() -> None:
    """Create the roles if they are missing and give them their rights, all at once.

    On our tables they have these rights and no others afterwards; on the application's, what it
    gave them beside ours stays. One at a time does this, and not during a migration. Raises
    `SettingsError` where the login may not.
    """
    connection: Any = get_connection("default")
    pool = await connection.opened()
    async with pool.acquire() as session:
        try:
            async with session.transaction():
                await _grant(session)
        except asyncpg.InsufficientPrivilegeError as error:
            login = await session.fetchval("SELECT session_user")
            raise SettingsError(
                f"The login {login} may not grant rights ({error}). Run agentflow migrate --roles"
                " as the owner of the tables."
            ) from error


async def _grant(session: Any) -> None:
    await session.execute("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
    await session.fetch("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK, timeout=600)
    for role in (WEB, WRITER):
        await _create(session, role)
    for name in (*our_tables(), MIGRATIONS):
        for table in await _found(session, name):
            for statement in _ours(name, table):
                await session.execute(statement)
    for name in _tables_of_the_application():
        for table in await _found(session, name):
            for statement in _theirs(table):
                await session.execute(statement)
    await _check(session)


async def _create(session: Any, role: str) -> None:
    if await session.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
        return
    try:
        async with session.transaction():
            await session.execute(f"CREATE ROLE {role} NOLOGIN")
    except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        pass  # for another database of this server, meanwhile
    except asyncpg.InsufficientPrivilegeError as error:
        raise SettingsError(
            f"There is no role {role}, and this login may not create it. As a superuser, or with"
            f" CREATEROLE, run: CREATE ROLE {WEB} NOLOGIN; CREATE ROLE {WRITER} NOLOGIN; and then"
            " again: agentflow migrate --roles"
        ) from error


async def _found(session: Any, name: str) -> list[Table]:
    """The table of this quoted or plain name, or none: a model may be without one."""
    rows = await session.fetch(
        "SELECT quote_ident(n.nspname) AS schema, format('%I.%I', n.nspname, c.relname) AS name,"
        " ARRAY(SELECT format('%I.%I', m.nspname, s.relname) FROM pg_depend d"
        "  JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'"
        "  JOIN pg_namespace m ON m.oid = s.relnamespace"
        "  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass"
        "  AND d.refobjid = c.oid AND d.deptype IN ('a', 'i')) AS sequences"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = to_regclass($1)",
        name,
    )
    return [Table(row["schema"], row["name"], row["sequences"]) for row in rows]


def _ours(name: str, table: Table) -> Iterator[str]:
    """Taken away first, which takes the rights on single columns too: a version that inserts less
    than the last one leaves nothing behind."""
    both = f"{WEB}, {WRITER}"
    yield f"GRANT USAGE ON SCHEMA {table.schema} TO {both}"
    yield f"REVOKE ALL ON {table.name} FROM {both}"
    yield f"GRANT SELECT ON {table.name} TO {both}"
    if name == MIGRATIONS:
        return
    yield f"GRANT {', '.join(WRITES)} ON {table.name} TO {WRITER}"
    columns = INSERTED.get(name)
    if columns:
        quoted = ", ".join(f'"{column}"' for column in columns)
        yield f"GRANT INSERT ({quoted}) ON {table.name} TO {WEB}"
    for sequence in table.sequences:
        yield f"REVOKE ALL ON SEQUENCE {sequence} FROM {both}"
        yield f"GRANT USAGE ON SEQUENCE {sequence} TO {both if columns else WRITER}"


def _theirs(table: Table) -> Iterator[str]:
    """Rows of the application are created together with jobs, and changed by its handlers."""
    yield f"GRANT USAGE ON SCHEMA {table.schema} TO {WEB}, {WRITER}"
    yield f"GRANT SELECT, INSERT ON {table.name} TO {WEB}"
    yield f"GRANT {', '.join(WRITES)} ON {table.name} TO {WRITER}"
    for sequence in table.sequences:
        yield f"GRANT USAGE ON SEQUENCE {sequence} TO {WEB}, {WRITER}"


async def _check(session: Any) -> None:
    """A GRANT by somebody who may not is but a warning, where he has the right himself."""
    for role, wanted in ((WEB, web_rights()), (WRITER, writer_rights())):
        rows = await session.fetch(*rights_query(role))
        lacking = wanted - rights_of(rows)
        if lacking or not await session.fetchval(
            "SELECT bool_and(has_schema_privilege($1::name, relnamespace, 'USAGE')) FROM pg_class"
            " WHERE oid = ANY($2::text[]::regclass[])",
            role,
            our_tables(),
        ):
            said = in_words(lacking) or "USAGE on the schema"
            raise SettingsError(
                f"{role} did not get {said}. Run agentflow migrate --roles as the owner of the"
                " tables and of their schema."
            )


def _tables_of_the_application() -> list[str]:
    """Quoted; with those between two models."""
    named: set[tuple[str | None, str]] = set()
    for label, app in models().items():
        for model in app.values() if label != "agentflow" else ():
            meta = model._meta
            named.add((meta.schema, meta.db_table))
            for name in meta.m2m_fields:
                between: Any = meta.fields_map[name]
                named.add((between.through_schema, between.through))
    return [".".join(f'"{part}"' for part in parts if part) for parts in sorted(named, key=str)]
