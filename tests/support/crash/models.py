"""The application's own row."""

from __future__ import annotations

from tortoise import fields
from tortoise.models import Model


class Shot(Model):
    """`job` is the one that ended last, or the first if none has; `handled` counts their ends."""

    id = fields.IntField(primary_key=True)
    status = fields.CharField(max_length=16, default="new")
    job = fields.CharField(max_length=36, null=True)
    file = fields.CharField(max_length=80, null=True)
    handled = fields.IntField(default=0)
