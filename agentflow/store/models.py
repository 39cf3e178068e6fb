"""The tables. Only the writer updates them; the web role inserts and reads (design rule 1)."""

from __future__ import annotations

from typing import Any

from tortoise import fields
from tortoise.indexes import Index
from tortoise.migrations.constraints import CheckConstraint
from tortoise.models import Model

OPEN_HAS_ALARM = "(status IN ('succeeded', 'failed', 'canceled', 'expired')) = (wake_at IS NULL)"


class JobRow(Model):
    """One job: what was asked, where it stands, and what it came to."""

    # Migration 0002 adds partial indexes, for which Tortoise has no words, over open jobs.

    id = fields.CharField(max_length=36, primary_key=True)
    tenant = fields.CharField(max_length=64)
    task = fields.CharField(max_length=128)
    queue = fields.CharField(max_length=40, db_default="")
    status = fields.CharField(max_length=12)
    reason = fields.CharField(max_length=64)
    phase = fields.CharField(max_length=16, null=True)
    ending = fields.CharField(max_length=8, null=True)
    attempt = fields.SmallIntField()
    max_attempts = fields.SmallIntField()
    policy: fields.JSONField[Any] = fields.JSONField()
    abilities: fields.JSONField[Any] = fields.JSONField()
    input: fields.JSONField[Any] = fields.JSONField(null=True)
    entity = fields.CharField(max_length=255, null=True)
    priority = fields.SmallIntField(default=0)
    tags: fields.JSONField[Any] = fields.JSONField()
    metadata: fields.JSONField[Any] = fields.JSONField()
    idempotency_key = fields.CharField(max_length=255, null=True)
    request_hash = fields.CharField(max_length=64, null=True)
    retry_of = fields.CharField(max_length=36, null=True)
    callback_url = fields.CharField(max_length=2048, null=True)
    trace = fields.CharField(max_length=55, null=True)
    progress: fields.JSONField[Any] = fields.JSONField(null=True)
    result: fields.JSONField[Any] = fields.JSONField(null=True)
    error: fields.JSONField[Any] = fields.JSONField(null=True)
    created_at = fields.DatetimeField()
    deadline = fields.DatetimeField()
    started_at = fields.DatetimeField(null=True)
    finished_at = fields.DatetimeField(null=True)
    check_at = fields.DatetimeField(null=True)
    checks = fields.SmallIntField(default=0)
    wake_at = fields.DatetimeField(null=True)
    version = fields.IntField()

    class Meta:
        table = "agentflow_jobs"
        unique_together = (("tenant", "idempotency_key"),)
        indexes = (
            Index(fields=["tenant", "id"]),
            Index(fields=["tenant", "status", "id"]),
            Index(fields=["tenant", "task", "id"]),
            Index(fields=["tenant", "entity", "id"]),
            Index(fields=["finished_at"]),
        )
        constraints = (CheckConstraint(check=OPEN_HAS_ALARM, name="agentflow_open_has_alarm"),)


class TagRow(Model):
    """A job's tag, for the list filter."""

    id = fields.BigIntField(primary_key=True)
    tenant = fields.CharField(max_length=64)
    tag = fields.CharField(max_length=64)
    job_id = fields.CharField(max_length=36)

    class Meta:
        table = "agentflow_tags"
        unique_together = (("tenant", "tag", "job_id"),)
        indexes = (Index(fields=["job_id"]),)


class AttemptRow(Model):
    """One try of a job. Webhooks find it by the token or the external id."""

    id = fields.BigIntField(primary_key=True)
    job_id = fields.CharField(max_length=36)
    number = fields.SmallIntField()
    tenant = fields.CharField(max_length=64)
    provider = fields.CharField(max_length=40)
    token = fields.CharField(max_length=64, unique=True)
    nonce = fields.CharField(max_length=64, null=True)
    worker = fields.CharField(max_length=64, null=True)
    external_id = fields.CharField(max_length=255, null=True)
    started_at = fields.DatetimeField(null=True)
    account = fields.CharField(max_length=16, null=True)

    class Meta:
        table = "agentflow_attempts"
        unique_together = (("job_id", "number"),)
        indexes = (Index(fields=["provider", "external_id"]),)


class HistoryRow(Model):
    """One decision: the event, what it did, and all it depended on.

    `xact` orders the feed on PostgreSQL, where ids are not given in the order of the commits.
    """

    id = fields.BigIntField(primary_key=True)
    job_id = fields.CharField(max_length=36)
    seq = fields.IntField()
    tenant = fields.CharField(max_length=64)
    envelope_id = fields.CharField(max_length=320)
    source = fields.CharField(max_length=8)
    event = fields.CharField(max_length=20)
    fields_: fields.JSONField[Any] = fields.JSONField(source_field="fields")
    disposition = fields.CharField(max_length=8)
    reason = fields.CharField(max_length=64)
    status = fields.CharField(max_length=12)
    patch: fields.JSONField[Any] = fields.JSONField()
    timers: fields.JSONField[Any] = fields.JSONField()
    told_at = fields.DatetimeField()
    decided_at = fields.DatetimeField()
    random = fields.CharField(max_length=64)
    machine = fields.SmallIntField()
    xact = fields.BigIntField(db_default=0)

    class Meta:
        table = "agentflow_history"
        unique_together = (("job_id", "seq"), ("job_id", "envelope_id"))
        indexes = (Index(fields=["tenant", "xact", "id"]),)


class InboxRow(Model):
    """A webhook or a command, verbatim, stored before anybody was told yes."""

    id = fields.CharField(max_length=36, primary_key=True)
    tenant = fields.CharField(max_length=64)
    kind = fields.CharField(max_length=8)
    provider = fields.CharField(max_length=40, null=True)
    dedup_key = fields.CharField(max_length=300, null=True)
    token = fields.CharField(max_length=64, null=True)
    type = fields.CharField(max_length=128, null=True)
    headers: fields.JSONField[Any] = fields.JSONField()
    body = fields.BinaryField()
    status = fields.CharField(max_length=8)
    reason = fields.CharField(max_length=128, null=True)
    error = fields.TextField(null=True)
    job_id = fields.CharField(max_length=36, null=True)
    received_at = fields.DatetimeField()
    applied_at = fields.DatetimeField(null=True)
    wake_at = fields.DatetimeField(null=True)

    class Meta:
        table = "agentflow_inbox"
        unique_together = (("provider", "dedup_key"),)
        indexes = (
            Index(fields=["status", "id"]),
            Index(fields=["wake_at"]),
            Index(fields=["tenant", "kind", "id"]),
            Index(fields=["received_at"]),
        )


class ParkedRow(Model):
    """A delivery that speaks of an external id no attempt has yet."""

    id = fields.BigIntField(primary_key=True)
    inbox_id = fields.CharField(max_length=36)
    provider = fields.CharField(max_length=40)
    external_id = fields.CharField(max_length=255)

    class Meta:
        table = "agentflow_parked"
        unique_together = (("provider", "external_id", "inbox_id"),)
        indexes = (Index(fields=["inbox_id"]),)


class HandlerRunRow(Model):
    """A run of the application's code that is owed, or failed and was set aside."""

    id = fields.CharField(max_length=36, primary_key=True)
    tenant = fields.CharField(max_length=64)
    handler = fields.CharField(max_length=255)
    kind = fields.CharField(max_length=12)
    job_id = fields.CharField(max_length=36, null=True)
    inbox_id = fields.CharField(max_length=36, null=True)
    event: fields.JSONField[Any] = fields.JSONField()
    status = fields.CharField(max_length=8)
    tries = fields.SmallIntField(default=0)
    error = fields.TextField(null=True)
    created_at = fields.DatetimeField()
    wake_at = fields.DatetimeField(null=True)
    done_at = fields.DatetimeField(null=True)

    class Meta:
        table = "agentflow_handler_runs"
        indexes = (
            Index(fields=["wake_at"]),
            Index(fields=["tenant", "status", "id"]),
            Index(fields=["job_id"]),
        )


class KeyRow(Model):
    """An API key, without its secret: `hash` is the SHA-256 of it, in hexadecimal."""

    id = fields.CharField(max_length=16, primary_key=True)
    tenant = fields.CharField(max_length=64)
    name = fields.CharField(max_length=100)
    scope = fields.CharField(max_length=8)
    hash = fields.CharField(max_length=64)
    created_at = fields.DatetimeField()
    expires_at = fields.DatetimeField(null=True)
    revoked_at = fields.DatetimeField(null=True)

    class Meta:
        table = "agentflow_keys"


class PauseRow(Model):
    """A task or a provider whose queued jobs wait until somebody resumes it."""

    target = fields.CharField(max_length=128, primary_key=True)
    note = fields.CharField(max_length=200, null=True)
    created_at = fields.DatetimeField()

    class Meta:
        table = "agentflow_pauses"


class UsageRow(Model):
    """A call that ended, what it used and what it cost. It outlives its job.

    `amount` counts ten-billionths of `currency`; where it is null, nobody knows the cost.
    """

    id = fields.BigIntField(primary_key=True)
    job_id = fields.CharField(max_length=36)
    attempt = fields.SmallIntField()
    tenant = fields.CharField(max_length=64)
    task = fields.CharField(max_length=128)
    model = fields.CharField(max_length=200, null=True)
    outcome = fields.CharField(max_length=12)
    usage: fields.JSONField[Any] = fields.JSONField()
    amount = fields.BigIntField(null=True)
    currency = fields.CharField(max_length=3, null=True)
    source = fields.CharField(max_length=64, null=True)
    ended_at = fields.DatetimeField()

    class Meta:
        table = "agentflow_usage"
        unique_together = (("job_id", "attempt"),)
        indexes = (
            Index(fields=["tenant", "ended_at"]),
            Index(fields=["tenant", "task", "ended_at"]),
            Index(fields=["ended_at"]),
        )


class UsageTagRow(Model):
    """A tag of the job that a call was for."""

    id = fields.BigIntField(primary_key=True)
    tenant = fields.CharField(max_length=64)
    tag = fields.CharField(max_length=64)
    job_id = fields.CharField(max_length=36)
    attempt = fields.SmallIntField()
    ended_at = fields.DatetimeField()

    class Meta:
        table = "agentflow_usage_tags"
        unique_together = (("job_id", "attempt", "tag"),)
        indexes = (Index(fields=["tenant", "tag", "ended_at"]), Index(fields=["ended_at"]))


class BudgetRow(Model):
    """A cap on what the calls of a tenant, or of one of its tags (`tag` is not empty), may cost.

    Amounts count ten-billionths of `currency`. `since` is the first day of the period that `spent`
    and `reserved` are of.
    """

    id = fields.CharField(max_length=36, primary_key=True)
    tenant = fields.CharField(max_length=64)
    tag = fields.CharField(max_length=64)
    period = fields.CharField(max_length=5)
    currency = fields.CharField(max_length=3)
    cap = fields.BigIntField()
    per_call = fields.BigIntField()
    note = fields.CharField(max_length=200, null=True)
    since = fields.CharField(max_length=10)
    spent = fields.BigIntField()
    reserved = fields.BigIntField()
    created_at = fields.DatetimeField()

    class Meta:
        table = "agentflow_budgets"
        unique_together = (("tenant", "tag", "period"),)


class ReservationRow(Model):
    """What a call under way may cost at most, set aside in a budget until it has ended."""

    id = fields.BigIntField(primary_key=True)
    job_id = fields.CharField(max_length=36)
    attempt = fields.SmallIntField()
    budget_id = fields.CharField(max_length=36)
    since = fields.CharField(max_length=10)
    amount = fields.BigIntField()

    class Meta:
        table = "agentflow_reservations"
        unique_together = (("job_id", "attempt", "budget_id"),)
        indexes = (Index(fields=["budget_id"]),)
