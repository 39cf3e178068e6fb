"""The table as it was at first."""

from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    initial = True

    operations = [  # noqa: RUF012
        ops.CreateModel(
            name="Note",
            fields=[
                (
                    "id",
                    fields.IntField(generated=True, primary_key=True, unique=True, db_index=True),
                ),
                ("text", fields.CharField(unique=True, max_length=200)),
            ],
            options={"table": "note", "app": "models", "pk_attr": "id"},
            bases=["Model"],
        ),
    ]
