"""Notes know their job."""

from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0001_initial")]  # noqa: RUF012

    operations = [  # noqa: RUF012
        ops.AddField(
            model_name="Note",
            name="job",
            field=fields.CharField(null=True, max_length=64),
        ),
    ]
