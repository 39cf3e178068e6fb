"""A table of another Tortoise app: a model's app is fixed when it is first loaded."""

from tortoise import fields
from tortoise.models import Model


class Entry(Model):
    id = fields.IntField(primary_key=True)
    text = fields.CharField(max_length=200)
