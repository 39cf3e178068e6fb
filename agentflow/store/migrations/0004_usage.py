from tortoise import migrations
from tortoise.migrations import operations as ops
from orjson import loads
from tortoise.fields.data import JSON_DUMPS
from tortoise import fields
from tortoise.indexes import Index


class Migration(migrations.Migration):
    dependencies = [("agentflow", "0003_callbacks")]

    initial = False

    operations = [
        ops.CreateModel(
            name="BudgetRow",
            fields=[
                (
                    "id",
                    fields.CharField(primary_key=True, unique=True, db_index=True, max_length=36),
                ),
                ("tenant", fields.CharField(max_length=64)),
                ("tag", fields.CharField(max_length=64)),
                ("period", fields.CharField(max_length=5)),
                ("currency", fields.CharField(max_length=3)),
                ("cap", fields.BigIntField()),
                ("per_call", fields.BigIntField()),
                ("note", fields.CharField(null=True, max_length=200)),
                ("since", fields.CharField(max_length=10)),
                ("spent", fields.BigIntField()),
                ("reserved", fields.BigIntField()),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_budgets",
                "app": "agentflow",
                "unique_together": (("tenant", "tag", "period"),),
                "pk_attr": "id",
                "table_description": "A cap on what the calls of a tenant, or of one of its tags (`tag` is not empty), may cost.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="ReservationRow",
            fields=[
                (
                    "id",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                ("job_id", fields.CharField(max_length=36)),
                ("attempt", fields.SmallIntField()),
                ("budget_id", fields.CharField(max_length=36)),
                ("since", fields.CharField(max_length=10)),
                ("amount", fields.BigIntField()),
            ],
            options={
                "table": "agentflow_reservations",
                "app": "agentflow",
                "unique_together": (("job_id", "attempt", "budget_id"),),
                "indexes": [Index(fields=["budget_id"])],
                "pk_attr": "id",
                "table_description": "What a call under way may cost at most, set aside in a budget until it has ended.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="UsageRow",
            fields=[
                (
                    "id",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                ("job_id", fields.CharField(max_length=36)),
                ("attempt", fields.SmallIntField()),
                ("tenant", fields.CharField(max_length=64)),
                ("task", fields.CharField(max_length=128)),
                ("model", fields.CharField(null=True, max_length=200)),
                ("outcome", fields.CharField(max_length=12)),
                ("usage", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("amount", fields.BigIntField(null=True)),
                ("currency", fields.CharField(null=True, max_length=3)),
                ("source", fields.CharField(null=True, max_length=64)),
                ("ended_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_usage",
                "app": "agentflow",
                "unique_together": (("job_id", "attempt"),),
                "indexes": [
                    Index(fields=["tenant", "ended_at"]),
                    Index(fields=["tenant", "task", "ended_at"]),
                    Index(fields=["ended_at"]),
                ],
                "pk_attr": "id",
                "table_description": "A call that ended, what it used and what it cost. It outlives its job.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="UsageTagRow",
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
                ("attempt", fields.SmallIntField()),
                ("ended_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agentflow_usage_tags",
                "app": "agentflow",
                "unique_together": (("job_id", "attempt", "tag"),),
                "indexes": [
                    Index(fields=["tenant", "tag", "ended_at"]),
                    Index(fields=["ended_at"]),
                ],
                "pk_attr": "id",
                "table_description": "A tag of the job that a call was for.",
            },
            bases=["Model"],
        ),
    ]
