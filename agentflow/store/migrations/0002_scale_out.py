from typing import Any

from tortoise import migrations
from tortoise.migrations import operations as ops
from tortoise import fields
from tortoise.indexes import Index

QUEUED = [
    "UPDATE agentflow_jobs SET queue = substr(task, 1, strpos(task, '.') - 1) WHERE queue = ''",
    "CREATE INDEX agentflow_alarms ON agentflow_jobs (wake_at) WHERE status <> 'queued'",
    "CREATE INDEX agentflow_ready ON agentflow_jobs (queue, priority DESC, id) WHERE status = 'queued'",
    "CREATE INDEX agentflow_rings ON agentflow_jobs (queue, wake_at) WHERE status = 'queued'",
    "CREATE INDEX agentflow_late ON agentflow_jobs (deadline) WHERE status = 'queued'",
    "CREATE INDEX agentflow_bodies ON agentflow_inbox (applied_at) WHERE length(body) > 0",
]
POSTGRES = [
    "ALTER TABLE agentflow_jobs ADD CONSTRAINT agentflow_final_has_end CHECK"
    " ((status IN ('succeeded', 'failed', 'canceled', 'expired')) = (finished_at IS NOT NULL))",
    "ALTER TABLE agentflow_history ALTER COLUMN xact SET DEFAULT (pg_current_xact_id()::text::bigint)",
    "ALTER TABLE agentflow_jobs SET (fillfactor = 80)",
    "ALTER TABLE agentflow_attempts SET (fillfactor = 80)",
]


async def by_hand(_apps: object, editor: Any) -> None:
    """Partial indexes over open jobs, and what only PostgreSQL has.

    On SQLite, Tortoise adds a constraint by building the table anew, and forgets its unique keys.
    """
    postgres = editor.client.capabilities.dialect == "postgres"
    for statement in QUEUED + (POSTGRES if postgres else []):
        text = statement if postgres else statement.replace("strpos", "instr")
        await editor.client.execute_query(text)


class Migration(migrations.Migration):
    dependencies = [("agentflow", "0001_initial")]

    initial = False

    operations = [
        ops.CreateModel(
            name="KeyRow",
            fields=[
                (
                    "id",
                    fields.CharField(primary_key=True, unique=True, db_index=True, max_length=16),
                ),
                ("tenant", fields.CharField(max_length=64)),
                ("name", fields.CharField(max_length=100)),
                ("scope", fields.CharField(max_length=8)),
                ("hash", fields.CharField(max_length=64)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("expires_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("revoked_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_keys",
                "app": "agentflow",
                "pk_attr": "id",
                "table_description": "An API key, without its secret: `hash` is the SHA-256 of it, in hexadecimal.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="PauseRow",
            fields=[
                (
                    "target",
                    fields.CharField(primary_key=True, unique=True, db_index=True, max_length=128),
                ),
                ("note", fields.CharField(null=True, max_length=200)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_pauses",
                "app": "agentflow",
                "pk_attr": "target",
                "table_description": "A task or a provider whose queued jobs wait until somebody resumes it.",
            },
            bases=["Model"],
        ),
        ops.AddIndex(
            model_name="HandlerRunRow",
            index=Index(fields=["job_id"]),
        ),
        ops.AddField(
            model_name="HistoryRow",
            name="xact",
            field=fields.BigIntField(db_default=0),
        ),
        ops.AddIndex(
            model_name="HistoryRow",
            index=Index(fields=["tenant", "xact", "id"]),
        ),
        ops.AddIndex(
            model_name="InboxRow",
            index=Index(fields=["received_at"]),
        ),
        ops.RemoveIndex(
            model_name="JobRow",
            name=None,
            fields=["wake_at"],
        ),
        ops.RemoveIndex(
            model_name="JobRow",
            name=None,
            fields=["status", "priority", "id"],
        ),
        ops.AddField(
            model_name="JobRow",
            name="queue",
            field=fields.CharField(db_default="", max_length=40),
        ),
        ops.AddField(
            model_name="JobRow",
            name="trace",
            field=fields.CharField(null=True, max_length=55),
        ),
        ops.AddIndex(
            model_name="JobRow",
            index=Index(fields=["finished_at"]),
        ),
        ops.AddIndex(
            model_name="TagRow",
            index=Index(fields=["job_id"]),
        ),
        ops.RunPython(by_hand),
    ]
