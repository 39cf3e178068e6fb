"""The feed: every entry of a tenant's history, in one order that never changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from agentflow.store.queries import ENTRY, Reader, entry_view
from agentflow.types import JsonObject

_CURSOR = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})")
_MOST = 2**63


class Position(NamedTuple):
    """After which entry to go on: the transaction that wrote it (0 on SQLite), and its id."""

    xact: int
    id: int

    def __str__(self) -> str:
        return f"{self.xact}.{self.id}"

    @classmethod
    def read(cls, cursor: str) -> Position | None:
        """The position of a cursor; None if it is none."""
        found = _CURSOR.fullmatch(cursor)
        at = found and cls(int(found[1]), int(found[2]))
        return at if at and max(at) < _MOST else None


START = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of the feed. `held` means that more is committed, but must wait for its turn."""

    entries: list[tuple[Position, JsonObject]]
    held: bool

    def end(self, start: Position) -> Position:
        """Where to go on, if it was read from `start`."""
        return self.entries[-1][0] if self.entries else start


async def stretch(tenant: str, after: Position, limit: int) -> Stretch:
    """At most `limit` entries after this position.

    Nothing is ever stored before an entry that was given. On SQLite one transaction writes at a
    time, and ids are never used again, so ids grow as commits do. PostgreSQL gives out ids before
    the commit: 7 may be seen while 6 is not. There an entry bears the number of its transaction
    (`xact`, 64 bits, never used again), and only those below the oldest transaction still open are
    given. Whoever has a lower number has ended, so its entries are seen or will never be; whoever
    begins now gets a higher number. Hence the entries below this mark are complete, and their
    order by `(xact, id)` is final. The price is that the feed waits for the oldest transaction of
    the database that has written something, anybody's.
    """
    sql = Reader()
    rows = await sql.rows(
        f'SELECT {ENTRY}, "xact", {_settled(sql)} AS "settled" FROM "agentflow_history"'
        f' WHERE "tenant" = {sql.mark(1)} AND ("xact", "id") > ({sql.mark(2)}, {sql.mark(3)})'
        f' ORDER BY "xact", "id" LIMIT {limit}',
        [tenant, after.xact, after.id],
    )
    given = [row for row in rows if row["settled"]]
    entries = [(Position(row["xact"], row["id"]), entry_view(row)) for row in given]
    return Stretch(entries, held=len(given) < len(rows))


async def end(tenant: str) -> Position:
    """The position of the last entry that can be given now."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT "xact", "id" FROM "agentflow_history" WHERE "tenant" = {sql.mark(1)}'
        f' AND {_settled(sql)} ORDER BY "xact" DESC, "id" DESC LIMIT 1',
        [tenant],
    )
    return Position(rows[0]["xact"], rows[0]["id"]) if rows else START


def _settled(sql: Reader) -> str:
    if not sql.postgres:
        return "1 = 1"
    return f'("xact" < ({_OLDEST}))'


# Numbers are given out by the server, so a restore of another database beside ours would hold the
# feed for hours: what is seen to be another database's does not count. A standby's snapshot lists
# none (`xip` is empty, PostgreSQL 13-17, procarray.c), so there the server's oldest counts.
_OLDEST = """
    SELECT (CASE WHEN count(*) = 0 THEN pg_snapshot_xmin(pg_current_snapshot()) ELSE coalesce(
        min(number) FILTER (WHERE (number::xid IN (
            SELECT held.transactionid FROM pg_locks AS held
            JOIN pg_stat_activity AS session ON session.pid = held.pid
            JOIN pg_database AS ours ON ours.datname = current_database()
            WHERE held.locktype = 'transactionid' AND held.mode = 'ExclusiveLock'
            AND session.datid <> ours.oid
        )) IS NOT TRUE), pg_snapshot_xmax(pg_current_snapshot())) END)::text::bigint
    FROM pg_snapshot_xip(pg_current_snapshot()) AS number"""
