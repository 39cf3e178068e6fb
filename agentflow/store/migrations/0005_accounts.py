from typing import Any

from tortoise import migrations
from tortoise.migrations import operations as ops
from tortoise import fields

READY = [
    "DROP INDEX agentflow_ready",
    "CREATE INDEX agentflow_ready ON agentflow_jobs (queue, tenant, priority DESC, id)"
    " WHERE status = 'queued'",
]


async def by_hand(_apps: object, editor: Any) -> None:
    """What is ready, by tenant: the writer lets them take turns."""
    for statement in READY:
        await editor.client.execute_query(statement)


class Migration(migrations.Migration):
    dependencies = [("agentflow", "0004_usage")]

    initial = False

    operations = [
        ops.AddField(
            model_name="AttemptRow",
            name="account",
            field=fields.CharField(null=True, max_length=16),
        ),
        ops.RunPython(by_hand),
    ]
