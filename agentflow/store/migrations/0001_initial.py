from tortoise import migrations
from tortoise.migrations import operations as ops
from orjson import loads
from tortoise.fields.data import JSON_DUMPS
from tortoise import fields
from tortoise.indexes import Index
from tortoise.migrations.constraints import CheckConstraint


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="AttemptRow",
            fields=[
                (
                    "id",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                ("job_id", fields.CharField(max_length=36)),
                ("number", fields.SmallIntField()),
                ("tenant", fields.CharField(max_length=64)),
                ("provider", fields.CharField(max_length=40)),
                ("token", fields.CharField(unique=True, max_length=64)),
                ("nonce", fields.CharField(null=True, max_length=64)),
                ("worker", fields.CharField(null=True, max_length=64)),
                ("external_id", fields.CharField(null=True, max_length=255)),
                ("started_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_attempts",
                "app": "agentflow",
                "unique_together": (("job_id", "number"),),
                "indexes": [Index(fields=["provider", "external_id"])],
                "pk_attr": "id",
                "table_description": "One try of a job. Webhooks find it by the token or the external id.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="HandlerRunRow",
            fields=[
                (
                    "id",
                    fields.CharField(primary_key=True, unique=True, db_index=True, max_length=36),
                ),
                ("tenant", fields.CharField(max_length=64)),
                ("handler", fields.CharField(max_length=255)),
                ("kind", fields.CharField(max_length=12)),
                ("job_id", fields.CharField(null=True, max_length=36)),
                ("inbox_id", fields.CharField(null=True, max_length=36)),
                ("event", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("status", fields.CharField(max_length=8)),
                ("tries", fields.SmallIntField(default=0)),
                ("error", fields.TextField(null=True, unique=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("wake_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("done_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_handler_runs",
                "app": "agentflow",
                "indexes": [Index(fields=["wake_at"]), Index(fields=["tenant", "status", "id"])],
                "pk_attr": "id",
                "table_description": "A run of the application's code that is owed, or failed and was set aside.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="HistoryRow",
            fields=[
                (
                    "id",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                ("job_id", fields.CharField(max_length=36)),
                ("seq", fields.IntField()),
                ("tenant", fields.CharField(max_length=64)),
                ("envelope_id", fields.CharField(max_length=320)),
                ("source", fields.CharField(max_length=8)),
                ("event", fields.CharField(max_length=20)),
                (
                    "fields_",
                    fields.JSONField(source_field="fields", encoder=JSON_DUMPS, decoder=loads),
                ),
                ("disposition", fields.CharField(max_length=8)),
                ("reason", fields.CharField(max_length=64)),
                ("status", fields.CharField(max_length=12)),
                ("patch", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("timers", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("told_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("decided_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("random", fields.CharField(max_length=64)),
                ("machine", fields.SmallIntField()),
            ],
            options={
                "table": "agentflow_history",
                "app": "agentflow",
                "unique_together": (("job_id", "seq"), ("job_id", "envelope_id")),
                "pk_attr": "id",
                "table_description": "One decision: the event, what it did, and all it depended on.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="InboxRow",
            fields=[
                (
                    "id",
                    fields.CharField(primary_key=True, unique=True, db_index=True, max_length=36),
                ),
                ("tenant", fields.CharField(max_length=64)),
                ("kind", fields.CharField(max_length=8)),
                ("provider", fields.CharField(null=True, max_length=40)),
                ("dedup_key", fields.CharField(null=True, max_length=300)),
                ("token", fields.CharField(null=True, max_length=64)),
                ("type", fields.CharField(null=True, max_length=128)),
                ("headers", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("body", fields.BinaryField()),
                ("status", fields.CharField(max_length=8)),
                ("reason", fields.CharField(null=True, max_length=128)),
                ("error", fields.TextField(null=True, unique=False)),
                ("job_id", fields.CharField(null=True, max_length=36)),
                ("received_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("applied_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("wake_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_inbox",
                "app": "agentflow",
                "unique_together": (("provider", "dedup_key"),),
                "indexes": [
                    Index(fields=["status", "id"]),
                    Index(fields=["wake_at"]),
                    Index(fields=["tenant", "kind", "id"]),
                ],
                "pk_attr": "id",
                "table_description": "A webhook or a command, verbatim, stored before anybody was told yes.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="JobRow",
            fields=[
                (
                    "id",
                    fields.CharField(primary_key=True, unique=True, db_index=True, max_length=36),
                ),
                ("tenant", fields.CharField(max_length=64)),
                ("task", fields.CharField(max_length=128)),
                ("status", fields.CharField(max_length=12)),
                ("reason", fields.CharField(max_length=64)),
                ("phase", fields.CharField(null=True, max_length=16)),
                ("ending", fields.CharField(null=True, max_length=8)),
                ("attempt", fields.SmallIntField()),
                ("max_attempts", fields.SmallIntField()),
                ("policy", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("abilities", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("input", fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads)),
                ("entity", fields.CharField(null=True, max_length=255)),
                ("priority", fields.SmallIntField(default=0)),
                ("tags", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("metadata", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("idempotency_key", fields.CharField(null=True, max_length=255)),
                ("request_hash", fields.CharField(null=True, max_length=64)),
                ("retry_of", fields.CharField(null=True, max_length=36)),
                ("progress", fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads)),
                ("result", fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads)),
                ("error", fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("deadline", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("started_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                (
                    "finished_at",
                    fields.DatetimeField(null=True, auto_now=False, auto_now_add=False),
                ),
                ("check_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("checks", fields.SmallIntField(default=0)),
                ("wake_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("version", fields.IntField()),
            ],
            options={
                "table": "agentflow_jobs",
                "app": "agentflow",
                "unique_together": (("tenant", "idempotency_key"),),
                "constraints": [
                    CheckConstraint(
                        check="(status IN ('succeeded', 'failed', 'canceled', 'expired')) = (wake_at IS NULL)",
                        name="agentflow_open_has_alarm",
                    )
                ],
                "indexes": [
                    Index(fields=["tenant", "id"]),
                    Index(fields=["tenant", "status", "id"]),
                    Index(fields=["tenant", "task", "id"]),
                    Index(fields=["tenant", "entity", "id"]),
                    Index(fields=["wake_at"]),
                    Index(fields=["status", "priority", "id"]),
                ],
                "pk_attr": "id",
                "table_description": "One job: what was asked, where it stands, and what it came to.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="ParkedRow",
            fields=[
                (
                    "id",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                ("inbox_id", fields.CharField(max_length=36)),
                ("provider", fields.CharField(max_length=40)),
                ("external_id", fields.CharField(max_length=255)),
            ],
            options={
                "table": "agentflow_parked",
                "app": "agentflow",
                "unique_together": (("provider", "external_id", "inbox_id"),),
                "indexes": [Index(fields=["inbox_id"])],
                "pk_attr": "id",
                "table_description": "A delivery that speaks of an external id no attempt has yet.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="TagRow",
            fields=[
                (
                    "id",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                ("tenant", fields.CharField(max_length=64)),
                ("tag", fields.CharField(max_length=64)),
                ("job_id", fields.CharField(max_length=36)),
            ],
            options={
                "table": "agentflow_tags",
                "app": "agentflow",
                "unique_together": (("tenant", "tag", "job_id"),),
                "pk_attr": "id",
                "table_description": "A job's tag, for the list filter.",
            },
            bases=["Model"],
        ),
    ]
