"""What the web role may write: new jobs with their first attempt and entry 0, and the inbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentflow.core.events import Source
from agentflow.core.job import Attempt, Job, patch_between
from agentflow.core.machine import MACHINE_VERSION
from agentflow.core.submission import NewJob
from agentflow.core.transition import Disposition
from agentflow.store.rows import changed_columns, dumps
from agentflow.store.sql import Sql
from agentflow.types import DEFAULT_TENANT

# What a new job cannot have (a result, an end) is left out: on PostgreSQL the web role has no right
# to write it.
JOB = [
    "id",
    "tenant",
    "task",
    "queue",
    "status",
    "reason",
    "phase",
    "attempt",
    "max_attempts",
    "policy",
    "abilities",
    "input",
    "entity",
    "priority",
    "tags",
    "metadata",
    "idempotency_key",
    "request_hash",
    "retry_of",
    "callback_url",
    "trace",
    "created_at",
    "deadline",
    "started_at",
    "check_at",
    "checks",
    "wake_at",
    "version",
]
ATTEMPT = [
    "job_id",
    "number",
    "tenant",
    "provider",
    "token",
    "nonce",
    "worker",
    "external_id",
    "started_at",
    "account",
]
HISTORY = [
    "job_id",
    "seq",
    "tenant",
    "envelope_id",
    "source",
    "event",
    "fields",
    "disposition",
    "reason",
    "status",
    "patch",
    "timers",
    "told_at",
    "decided_at",
    "random",
    "machine",
]
INBOX = [
    "id",
    "tenant",
    "kind",
    "provider",
    "dedup_key",
    "token",
    "type",
    "headers",
    "body",
    "status",
    "job_id",
    "received_at",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxEntry:
    """A delivery (`kind="webhook"`) or a command (`kind="command"`), to be stored verbatim."""

    id: str
    kind: str
    body: bytes
    received_at: datetime
    tenant: str = DEFAULT_TENANT
    provider: str | None = None
    dedup_key: str | None = None
    token: str | None = None
    type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    job_id: str | None = None


async def insert_jobs(sql: Sql, jobs: Sequence[NewJob]) -> None:
    """Store the jobs, each with its attempt, its tags and entry 0 of its history.

    In the order of their keys, so that two groups that repeat each other do not wait crosswise.
    """
    jobs = sorted(jobs, key=lambda n: (n.job.tenant, n.idempotency_key or "", n.job.id))
    await sql.insert("agentflow_jobs", JOB, [_job_values(n) for n in jobs])
    await sql.insert(
        "agentflow_attempts", ATTEMPT, [attempt_values(n.job, n.job.current) for n in jobs]
    )
    await sql.insert("agentflow_history", HISTORY, [_entry_values(n) for n in jobs])
    tags = [(n.job.tenant, tag, n.job.id) for n in jobs for tag in n.tags]
    await sql.insert("agentflow_tags", ("tenant", "tag", "job_id"), tags)


async def insert_inbox(sql: Sql, entries: Sequence[InboxEntry]) -> dict[str, str]:
    """Store the entries; say under which id each is there: its own, or that of an earlier one
    with the same `dedup_key`."""
    await sql.insert(
        "agentflow_inbox",
        INBOX,
        [_inbox_values(e) for e in entries],
        'ON CONFLICT ("provider", "dedup_key") DO NOTHING',
    )
    found = await sql.rows(
        f'SELECT "id" FROM "agentflow_inbox" WHERE {sql.among("id", 1)}',
        [sql.array(e.id for e in entries)],
    )
    stored = {row["id"]: row["id"] for row in found}
    repeated = [e for e in entries if e.id not in stored]
    if repeated:
        rows = await sql.rows(
            'SELECT "id", "provider", "dedup_key" FROM "agentflow_inbox"'
            f" WHERE {sql.among('provider', 1)} AND {sql.among('dedup_key', 2)}",
            [
                sql.array({e.provider for e in repeated}),
                sql.array({e.dedup_key for e in repeated}),
            ],
        )
        known = {(row["provider"], row["dedup_key"]): row["id"] for row in rows}
        stored |= {e.id: known[e.provider, e.dedup_key] for e in repeated}
    return stored


def _job_values(new: NewJob) -> list[Any]:
    job = new.job
    values: dict[str, Any] = {
        **changed_columns(job),
        "id": job.id,
        "tenant": job.tenant,
        "task": job.task,
        "queue": job.provider,
        "max_attempts": job.max_attempts,
        "policy": dumps(job.policy),
        "abilities": dumps(job.abilities),
        "input": new.input,
        "entity": new.entity,
        "priority": new.priority,
        "tags": dumps(new.tags),
        "metadata": new.metadata,
        "idempotency_key": new.idempotency_key,
        "request_hash": new.request_hash,
        "retry_of": new.retry_of,
        "callback_url": new.callback_url,
        "trace": new.trace,
        "created_at": job.created_at,
        "deadline": job.deadline,
    }
    return [values[c] for c in JOB]


def attempt_values(job: Job, a: Attempt) -> list[Any]:
    """A row of `agentflow_attempts`, in the order of `ATTEMPT`."""
    return [
        job.id, a.number, job.tenant, job.provider, a.token, a.nonce, a.worker, a.external_id,
        a.started_at, a.account,
    ]  # fmt: skip


def _entry_values(new: NewJob) -> list[Any]:
    job = new.job
    return [
        job.id,
        0,
        job.tenant,
        "submitted",
        Source.API.value,
        "submitted",
        "{}",
        Disposition.APPLIED.value,
        job.reason,
        job.status.value,
        dumps(patch_between(None, job)),
        dumps({"check_at": job.check_at, "checks": job.checks}),
        job.created_at,
        job.created_at,
        "",
        MACHINE_VERSION,
    ]


def _inbox_values(e: InboxEntry) -> list[Any]:
    return [
        e.id, e.tenant, e.kind, e.provider, e.dedup_key, e.token, e.type, dumps(e.headers), e.body,
        "received", e.job_id, e.received_at,
    ]  # fmt: skip
