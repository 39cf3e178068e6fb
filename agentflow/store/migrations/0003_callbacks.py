from tortoise import migrations
from tortoise.migrations import operations as ops
from tortoise import fields


class Migration(migrations.Migration):
    dependencies = [("agentflow", "0002_scale_out")]

    initial = False

    operations = [
        ops.AddField(
            model_name="JobRow",
            name="callback_url",
            field=fields.CharField(null=True, max_length=2048),
        ),
    ]
