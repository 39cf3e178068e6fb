"""The read side: what the API shows. Every query names its tenant (design rule 12)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from tortoise.connection import get_connection
from tortoise.exceptions import BaseORMException

from agentflow.core.job import FINAL, Phase, Status
from agentflow.errors import NotFound, StoreUnavailable
from agentflow.store.rows import Row, instant, loads
from agentflow.store.sql import Sql
from agentflow.types import JsonObject

log = structlog.get_logger(__name__)

JOB = (
    'j."id", j."tenant", j."task", j."status", j."reason", j."phase", j."attempt", j."progress",'
    ' j."entity", j."result", j."error", j."tags", j."metadata", j."priority", j."retry_of",'
    ' j."wake_at", j."deadline", j."created_at", j."started_at", j."finished_at", j."version",'
    ' j."max_attempts", a."external_id"'
)
_FROM = (
    'FROM "agentflow_jobs" j LEFT JOIN "agentflow_attempts" a'
    ' ON a."job_id" = j."id" AND a."number" = j."attempt"'
)
AGAIN = (
    '"id", "task", "input", "entity", "priority", "tags", "metadata", "max_attempts", "status",'
    ' "callback_url"'
)
ENTRY = (
    '"id", "job_id", "seq", "source", "event", "fields", "disposition", "reason", "status",'
    ' "told_at", "decided_at", "patch"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """`since` is an instant; `cursor` the id the next page starts after (newest first)."""

    status: str | None = None
    task: str | None = None
    entity: str | None = None
    tag: str | None = None
    since: datetime | None = None
    cursor: str | None = None
    limit: int = 50


class Reader(Sql):
    """Reads for a caller who is to be told if the database is away, and nothing of why."""

    def __init__(self) -> None:
        try:
            super().__init__(get_connection("default"))
        except (BaseORMException, RuntimeError) as error:  # the latter before `init`
            raise _unavailable(error) from error

    async def rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Raises `StoreUnavailable`. A text with a NUL, which PostgreSQL has not, finds nothing."""
        if self.postgres:
            values = [v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in values]
        try:
            return await super().rows(query, values)
        except BaseORMException as error:
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> StoreUnavailable:
    log.error("Reading failed", error=str(error), kind=type(error).__name__)
    return StoreUnavailable()


async def get_job(tenant: str, id: str) -> JsonObject:
    """Raises `NotFound`, also for another tenant's job."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT {JOB} {_FROM} WHERE j."tenant" = {sql.mark(1)} AND j."id" = {sql.mark(2)}',
        [tenant, id],
    )
    if not rows:
        raise NotFound(f"There is no job {id}")
    return job_view(rows[0])


async def job_views(sql: Sql, ids: Iterable[str]) -> list[JsonObject]:
    """These jobs, of any tenant, as this transaction sees them."""
    rows = await sql.rows(f"SELECT {JOB} {_FROM} WHERE {sql.among('j.id', 1)}", [sql.array(ids)])
    return [job_view(row) for row in rows]


async def get_input(tenant: str, id: str) -> Row:
    """What is needed to submit the job again. Raises `NotFound`."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT {AGAIN} FROM "agentflow_jobs"'
        f' WHERE "tenant" = {sql.mark(1)} AND "id" = {sql.mark(2)}',
        [tenant, id],
    )
    if not rows:
        raise NotFound(f"There is no job {id}")
    return rows[0]


async def job_of_request(tenant: str, idempotency_key: str, request_hash: str) -> str | None:
    """The job that this request made under this key; None if there is none, or another's."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT "id" FROM "agentflow_jobs" WHERE "tenant" = {sql.mark(1)}'
        f' AND "idempotency_key" = {sql.mark(2)} AND "request_hash" = {sql.mark(3)}',
        [tenant, idempotency_key, request_hash],
    )
    return rows[0]["id"] if rows else None


async def jobs_of_keys(tenant: str, keys: Iterable[str]) -> dict[str, Row]:
    """The jobs under these idempotency keys, by key: `id`, `status` and `request_hash`."""
    sql = Reader()
    rows = await sql.rows(
        'SELECT "id", "status", "idempotency_key", "request_hash" FROM "agentflow_jobs"'
        f' WHERE "tenant" = {sql.mark(1)} AND {sql.among("idempotency_key", 2)}',
        [tenant, sql.array(keys)],
    )
    return {row["idempotency_key"]: row for row in rows}


async def list_jobs(tenant: str, wanted: JobFilter) -> tuple[list[JsonObject], str | None]:
    """One page, newest first, and the cursor of the next."""
    sql = Reader()
    join, where, values = conditions(sql, tenant, wanted)
    rows = await sql.rows(
        f'SELECT {JOB} {_FROM} {join} WHERE {where} ORDER BY j."id" DESC LIMIT {wanted.limit + 1}',
        values,
    )
    return _page([job_view(r) for r in rows], wanted.limit)


def conditions(sql: Sql, tenant: str, wanted: JobFilter) -> tuple[str, str, list[Any]]:
    """What picks these jobs, called `j`: the joins, the condition and its parameters."""
    values: list[Any] = [tenant]
    where = [f'j."tenant" = {sql.mark(1)}']

    def add(condition: str, value: Any) -> None:
        values.append(value)
        where.append(condition.format(sql.mark(len(values))))

    for column in ("status", "task", "entity"):
        if getattr(wanted, column) is not None:
            add(f'j."{column}" = {{}}', getattr(wanted, column))
    if wanted.since is not None:
        add('j."created_at" >= {}', wanted.since.astimezone(UTC))  # compared as text by SQLite
    if wanted.cursor is not None:
        add('j."id" < {}', wanted.cursor)
    join = ""
    if wanted.tag is not None:
        join = 'JOIN "agentflow_tags" t ON t."job_id" = j."id" AND t."tenant" = j."tenant"'
        add('t."tag" = {}', wanted.tag)
        if wanted.cursor is not None:  # where the index of the tags is to be entered
            add('t."job_id" < {}', wanted.cursor)
    return join, " AND ".join(where), values


async def history(tenant: str, job: str, after: int = -1, limit: int = 1000) -> list[JsonObject]:
    """Entries of the job's history with `seq` above `after`, in order."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT {ENTRY} FROM "agentflow_history"'
        f' WHERE "job_id" = {sql.mark(1)} AND "tenant" = {sql.mark(2)} AND "seq" > {sql.mark(3)}'
        f' ORDER BY "seq" LIMIT {limit}',
        [job, tenant, after],
    )
    return [entry_view(row) for row in rows]


async def deliveries(
    tenant: str,
    *,
    strays: bool,
    status: str | None,
    provider: str | None,
    cursor: str | None,
    limit: int,
) -> tuple[list[JsonObject], str | None]:
    """Webhooks in the inbox, newest first; `strays`: also those about no job."""
    sql = Reader()
    values: list[Any] = [tenant]
    where = [f'"tenant" = {sql.mark(1)}', "\"kind\" <> 'command'"]
    where += [] if strays else ['"job_id" IS NOT NULL']
    for column, value, sign in (
        ("status", status, "="),
        ("provider", provider, "="),
        ("id", cursor, "<"),
    ):
        if value is not None:
            values.append(value)
            where.append(f'"{column}" {sign} {sql.mark(len(values))}')
    rows = await sql.rows(
        f'SELECT {_DELIVERY} FROM "agentflow_inbox" WHERE {" AND ".join(where)}'
        f' ORDER BY "id" DESC LIMIT {limit + 1}',
        values,
    )
    return _page([delivery_view(r) for r in rows], limit)


async def get_delivery(tenant: str, id: str, *, strays: bool) -> JsonObject:
    """One delivery with its body as text. Raises `NotFound`, also for a command, and for what is
    about no job unless `strays`."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT {_DELIVERY}, "body", "headers" FROM "agentflow_inbox"'
        f' WHERE "tenant" = {sql.mark(1)} AND "id" = {sql.mark(2)} AND "kind" <> \'command\'',
        [tenant, id],
    )
    if not rows or not (strays or rows[0]["job_id"]):
        raise NotFound(f"There is no delivery {id}")
    body = bytes(rows[0]["body"]).decode(errors="replace")
    return {**delivery_view(rows[0]), "body": body, "headers": loads(rows[0]["headers"])}


async def inbox_status(id: str) -> str:
    """How far an inbox row is. Raises `NotFound`."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT "status" FROM "agentflow_inbox" WHERE "id" = {sql.mark(1)}', [id]
    )
    if not rows:
        raise NotFound(f"There is no entry {id}")
    return str(rows[0]["status"])


async def handler_runs(
    tenant: str, *, status: str | None, cursor: str | None, limit: int
) -> tuple[list[JsonObject], str | None]:
    """Runs of handlers that are owed or set aside, newest first."""
    sql = Reader()
    values: list[Any] = [tenant]
    where = [f'"tenant" = {sql.mark(1)}']
    for column, value, sign in (("status", status, "="), ("id", cursor, "<")):
        if value is not None:
            values.append(value)
            where.append(f'"{column}" {sign} {sql.mark(len(values))}')
    rows = await sql.rows(
        f'SELECT {_RUN} FROM "agentflow_handler_runs"'
        f' WHERE {" AND ".join(where)} ORDER BY "id" DESC LIMIT {limit + 1}',
        values,
    )
    return _page([_instants(dict(r)) for r in rows], limit)


async def get_handler_run(tenant: str, id: str) -> JsonObject:
    """Raises `NotFound`."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT {_RUN} FROM "agentflow_handler_runs"'
        f' WHERE "tenant" = {sql.mark(1)} AND "id" = {sql.mark(2)}',
        [tenant, id],
    )
    if not rows:
        raise NotFound(f"There is no run {id}")
    return _instants(dict(rows[0]))


async def oldest_due(now: datetime) -> float | None:
    """Seconds the oldest due alarm or unread inbox row has been waiting; None if none is."""
    sql = Reader()
    rows = await sql.rows(_OLDEST)
    at = instant(rows[0]["at"])
    return None if at is None or at > now else float((now - at).total_seconds())


_OLDEST = (  # the queues one by one, in each of which the index knows the first
    'WITH RECURSIVE "queues" ("name") AS ('
    ' SELECT MIN("queue") FROM "agentflow_jobs" WHERE "status" = \'queued\''
    ' UNION ALL SELECT (SELECT MIN(j."queue") FROM "agentflow_jobs" j'
    ' WHERE j."status" = \'queued\' AND j."queue" > "name") FROM "queues" WHERE "name" IS NOT NULL)'
    ' SELECT MIN("at") AS "at" FROM ('
    ' SELECT MIN("wake_at") AS "at" FROM "agentflow_jobs" WHERE "status" <> \'queued\''
    ' UNION ALL SELECT (SELECT MIN(j."wake_at") FROM "agentflow_jobs" j'
    ' WHERE j."status" = \'queued\' AND j."queue" = "name") FROM "queues"'
    ' UNION ALL SELECT * FROM (SELECT "received_at" FROM "agentflow_inbox"'
    ' WHERE "status" = \'received\' ORDER BY "id" LIMIT 1) AS "first"'
    ') AS "due"'
)


_RUN = (
    '"id", "handler", "kind", "job_id", "inbox_id", "status", "tries", "error", "created_at",'
    ' "wake_at", "done_at"'
)
_DELIVERY = (
    '"id", "kind", "provider", "dedup_key", "type", "status", "reason", "error", "job_id",'
    ' "received_at", "applied_at"'
)


def job_view(row: Row) -> JsonObject:
    """A job as the API shows it; see design section 8."""
    result = loads(row["result"])
    error = loads(row["error"])
    final = row["status"] in FINAL
    return {
        "id": row["id"],
        "task": row["task"],
        "status": row["status"],
        "reason": row["reason"],
        "phase": row["phase"],
        "attempt": row["attempt"],
        "max_attempts": row["max_attempts"],
        "progress": loads(row["progress"]) or {"fraction": None, "message": None},
        "entity": row["entity"],
        "tenant": row["tenant"],
        "external_id": row["external_id"],
        "result": result_view(result) if result and _delivered(row) else None,
        "error": error if error and (not final or row["status"] != "succeeded") else None,
        "cost": (result or {}).get("cost"),
        "tags": loads(row["tags"]),
        "metadata": loads(row["metadata"]),
        "priority": row["priority"],
        "retry_of": row["retry_of"],
        "wake_at": rfc3339(row["wake_at"]),
        "deadline": rfc3339(row["deadline"]),
        "created_at": rfc3339(row["created_at"]),
        "started_at": rfc3339(row["started_at"]),
        "finished_at": rfc3339(row["finished_at"]),
        "version": row["version"],
    }


def _delivered(row: Row) -> bool:
    """Whether the result is the last word, though files of it may still be on their way."""
    return bool(row["status"] == Status.SUCCEEDED or row["phase"] == Phase.COLLECTING)


def result_view(result: JsonObject) -> JsonObject:
    """A result without the places of our own store."""
    files = [
        {k: v for k, v in a.items() if k != "key"} | {"expires_at": rfc3339(a.get("expires_at"))}
        for a in result["artifacts"]
    ]
    return {**{k: v for k, v in result.items() if k != "cost"}, "artifacts": files}


def entry_view(row: Row) -> JsonObject:
    """An entry of the history, without tokens and nonces."""
    said = {k: v for k, v in loads(row["fields"]).items() if v is not None}
    for secret in ("nonce", "result", "artifacts"):
        said.pop(secret, None)
    return {
        "seq": row["seq"],
        "job_id": row["job_id"],
        "event": row["event"],
        "source": row["source"],
        "disposition": row["disposition"],
        "reason": row["reason"],
        "status": row["status"],
        "said": said,
        "progress": loads(row["patch"]).get("progress"),
        "told_at": rfc3339(row["told_at"]),
        "at": rfc3339(row["decided_at"]),
    }


def delivery_view(row: Row) -> JsonObject:
    key = row["dedup_key"]
    return {
        "id": row["id"],
        "kind": row["kind"],
        "provider": row["provider"],
        "delivery_id": key.removeprefix("id:") if key and key.startswith("id:") else None,
        "type": row["type"],
        "status": row["status"],
        "reason": row["reason"],
        "error": row["error"],
        "job_id": row["job_id"],
        "received_at": rfc3339(row["received_at"]),
        "applied_at": rfc3339(row["applied_at"]),
    }


def rfc3339(value: Any) -> str | None:
    """An instant in UTC, as RFC 3339 writes it, with `Z`."""
    at = instant(value)
    return None if at is None else at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _instants(row: JsonObject) -> JsonObject:
    return {k: rfc3339(v) if k.endswith("_at") else v for k, v in row.items()}


def _page(items: Sequence[JsonObject], limit: int) -> tuple[list[JsonObject], str | None]:
    if len(items) <= limit:
        return list(items), None
    return list(items[:limit]), items[limit - 1]["id"]
