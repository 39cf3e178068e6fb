"""The application's own tables. agentflow's lie beside them, in the same database."""

from tortoise import fields
from tortoise.models import Model


class Storyboard(Model):
    id = fields.IntField(primary_key=True)
    title = fields.CharField(max_length=200)


class Image(Model):
    id = fields.IntField(primary_key=True)
    storyboard = fields.ForeignKeyField("models.Storyboard", related_name="images")
    prompt = fields.TextField()
    file = fields.CharField(max_length=64, null=True)
    problem = fields.TextField(null=True)


class Video(Model):
    id = fields.IntField(primary_key=True)
    storyboard = fields.OneToOneField("models.Storyboard", related_name="video")
    file = fields.CharField(max_length=64, null=True)
    problem = fields.TextField(null=True)
