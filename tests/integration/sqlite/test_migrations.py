"""Tortoise's own migrations on the SQLite engine."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.memos import config
from tortoise.context import TortoiseContext
from tortoise.exceptions import OperationalError
from tortoise.migrations.api import migrate

DATABASES = ("sqlite",)


MIGRATION = """
from tortoise import fields, migrations
from tortoise.migrations import operations as ops


async def fill(apps, editor):
    await editor.client.execute_query("INSERT INTO shelf (name) VALUES ('filled')")


class Migration(migrations.Migration):
    initial = True
    atomic = {atomic}
    operations = [
        ops.CreateModel(
            name="Shelf",
            fields=[
                ("id", fields.IntField(generated=True, primary_key=True)),
                ("name", fields.CharField(max_length=50)),
            ],
            options={{"table": "shelf", "app": "models", "pk_attr": "id"}},
            bases=["Model"],
        ),
        ops.RunSQL("CREATE INDEX shelf_name ON shelf (name); CREATE TABLE extra (x INT)"),
        ops.RunPython(fill),
        ops.RunSQL("{last}"),
    ]
"""

MODELS = """
from tortoise import Model, fields


class Shelf(Model):
    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=50)

    class Meta:
        table = "shelf"
"""


class TestMigrations:
    async def migrated(self, root: Path, package: str, **migration: Any) -> None:
        """Run one migration on a fresh file; the tables that are there afterwards."""
        (root / package / "migrations").mkdir(parents=True)
        (root / package / "__init__.py").touch()
        (root / package / "models.py").write_text(MODELS)
        (root / package / "migrations" / "__init__.py").touch()
        (root / package / "migrations" / "0001_initial.py").write_text(
            MIGRATION.format(**migration)
        )
        settings = config(root / "x.db", hold_limit=10)
        settings["apps"]["models"] |= {
            "models": [f"{package}.models"],
            "migrations": f"{package}.migrations",
        }
        async with TortoiseContext() as context:
            try:
                await migrate(config=settings)
            finally:
                with sqlite3.connect(root / "x.db") as look:
                    rows = look.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                    self.tables = {name for (name,) in rows} & {"shelf", "extra"}
                look.close()
                await context.close_connections()

    @pytest.mark.parametrize("atomic", [True, False])
    async def test_tortoises_migrations_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        await self.migrated(tmp_path, f"shop_{atomic}", atomic=atomic, last="SELECT 1")
        assert self.tables == {"shelf", "extra"}

    async def test_a_failed_migration_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(OperationalError, match="nowhere"):
            await self.migrated(tmp_path, "shop_failing", atomic=True, last="SELECT * FROM nowhere")
        assert self.tables == set()
