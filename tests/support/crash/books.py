"""What a database holds after a crash or a storm, read as plain rows from either kind."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import orjson

Row: TypeAlias = dict[str, Any]

_TABLES = {
    "jobs": "SELECT * FROM agentflow_jobs ORDER BY id",
    "history": "SELECT * FROM agentflow_history ORDER BY job_id, seq",
    "attempts": "SELECT * FROM agentflow_attempts ORDER BY job_id, number",
    "inbox": "SELECT id, kind, status, reason, dedup_key, job_id, error FROM agentflow_inbox",
    "shots": "SELECT * FROM shot",
}
_JSON = ("result", "error", "patch", "fields")


@dataclass(frozen=True)
class Books:
    """The rows of the tables that the checks go by; JSON is decoded."""

    jobs: list[Row]
    history: list[Row]
    attempts: list[Row]
    inbox: list[Row]
    shots: list[Row]

    @cached_property
    def by_id(self) -> Mapping[str, Row]:
        return {job["id"]: job for job in self.jobs}

    @cached_property
    def entries(self) -> Mapping[str, list[Row]]:
        """The history of each job, in order."""
        found: defaultdict[str, list[Row]] = defaultdict(list)
        for entry in self.history:
            found[entry["job_id"]].append(entry)
        return found

    def told(self, id: str) -> str:
        """The history of one job, for a person."""
        return "\n".join(
            f"  {e['seq']:3} {e['decided_at']} {e['source']:8} {e['event']:16} {e['disposition']:8}"
            f" {e['reason']:24} {e['status']} {e['fields']}"
            for e in self.entries[id]
        )


def read_sqlite(path: Path) -> Books:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return _read({name: db.execute(sql).fetchall() for name, sql in _TABLES.items()})


async def read_postgres(url: str) -> Books:
    """One snapshot of it."""
    db = await asyncpg.connect(url)
    try:
        async with db.transaction(isolation="repeatable_read", readonly=True):
            return _read({name: await db.fetch(sql) for name, sql in _TABLES.items()})
    finally:
        await db.close()


def _read(tables: Mapping[str, Iterable[Any]]) -> Books:
    return Books(**{name: [_loaded(dict(row)) for row in rows] for name, rows in tables.items()})


def _loaded(row: Row) -> Row:
    for name in _JSON:
        value = row.get(name)
        if isinstance(value, str) and (name != "error" or value.startswith("{")):
            row[name] = orjson.loads(value)
    return row
