"""Who may do what in PostgreSQL: the web inserts and reads, the writer writes (design rule 1).

Two roles without a login hold the rights, and an installation's logins are members of them. Roles
belong to the whole server, their rights to each database. Workers have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tortoise.context import get_current_context

from agentflow.store.inserts import ATTEMPT, HISTORY, INBOX, JOB
from agentflow.store.sql import Sql

WEB = "agentflow_web"
WRITER = "agentflow_writer"

INSERTED: Mapping[str, Sequence[str]] = {
    "agentflow_jobs": JOB,
    "agentflow_attempts": ATTEMPT,
    "agentflow_history": HISTORY,
    "agentflow_tags": ("tenant", "tag", "job_id"),
    "agentflow_inbox": INBOX,
}
"""The columns the web may insert. A final job has an end (CHECK), and the column of it is not among
these: the web cannot insert one."""

WRITES = ("SELECT", "INSERT", "UPDATE", "DELETE")

Right: TypeAlias = tuple[str, str]
"""A table of ours and a privilege on it; INSERT and UPDATE may be on some columns only."""


def our_tables() -> list[str]:
    return [model._meta.db_table for model in models()["agentflow"].values()]


def web_rights() -> set[Right]:
    inserts = {(table, "INSERT") for table in INSERTED}
    return inserts | {(table, "SELECT") for table in our_tables()}


def writer_rights() -> set[Right]:
    return {(table, right) for table in our_tables() for right in WRITES}


async def rights(sql: Sql) -> set[Right]:
    """What this connection's login may do with our tables, which are there."""
    query, *values = rights_query(None)
    return rights_of(await sql.rows(query, values))


def rights_query(role: str | None) -> tuple[str, str | None, list[str]]:
    """The query and its two values, for a role or for the login itself."""
    query = (
        "SELECT t.name, r.word FROM unnest($2::text[]) AS t(name),"
        f" unnest(ARRAY{list(WRITES)}) AS r(word) CROSS JOIN (SELECT coalesce($1::name,"
        " current_user) AS role) AS u WHERE has_table_privilege(u.role, t.name, r.word)"
        " OR CASE WHEN r.word IN ('INSERT', 'UPDATE')"
        " THEN has_any_column_privilege(u.role, t.name, r.word) END"
    )
    return query, role, our_tables()


def rights_of(rows: Sequence[Mapping[str, Any]]) -> set[Right]:
    return {(row["name"], row["word"]) for row in rows}


def in_words(rights: set[Right]) -> str:
    """`UPDATE on agentflow_jobs, …`: the first few."""
    said = [f"{right} on {table}" for table, right in sorted(rights)]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def models() -> dict[str, dict[str, Any]]:
    """The models of each app of the open database."""
    context = get_current_context()
    assert context is not None, "the database is open"
    assert context.apps is not None, "the database is open"
    return context.apps.apps
