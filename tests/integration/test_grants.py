"""The logins of web, writer and workers on PostgreSQL: each may do its part and nothing else."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.cli import PROGRAM, agentflow, clean
from support.fakes import Fake
from support.patience import PATIENCE
from support.servers import Postgres
from support.shop.models import Note
from tortoise.connection import get_connection
from tortoise.exceptions import IntegrityError, OperationalError
from tortoise.transactions import in_transaction

from agentflow import Client, JobSpec, Settings
from agentflow.client import JobFailed
from agentflow.core.job import FINAL
from agentflow.core.submission import NewJob, prepare, prepare_adopted
from agentflow.errors import Conflict
from agentflow.store import keys, pauses, queries
from agentflow.store.database import Database, Models
from agentflow.store.feed import START, stretch
from agentflow.store.grants import grant_roles
from agentflow.store.inserts import InboxEntry
from agentflow.store.intake import Doorbell, Intake, Stored
from agentflow.store.rights import WEB, WRITER, our_tables, rights, web_rights, writer_rights
from agentflow.store.sql import Sql
from agentflow.types import new_id, utcnow

DATABASES = ("postgres",)

SHOP = Models(["support.shop.models"], "support.shop.migrations")
LOGINS = {"shop_web": WEB, "shop_writer": WRITER, "shop_worker": None}
TASK = Fake().provider.tasks["fake.work"]


@pytest.fixture
def bare(postgres: Postgres, database: str) -> Iterator[Callable[[str], str]]:
    """A server without roles of ours; call it for the test's database as a login names it."""
    name = database.rpartition("/")[2]
    yield lambda login: postgres.url(name, login)
    postgres.drop_database(name)
    for role in (*LOGINS, WEB, WRITER):
        postgres.sql(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
async def granted(
    bare: Callable[[str], str], postgres: Postgres, tmp_path: Path
) -> Callable[[str], str]:
    """The same with roles, their rights and a login of each, and one that belongs to nobody."""
    async with opened(bare("postgres"), tmp_path, migrate=True):
        await grant_roles()
    for login, role in LOGINS.items():
        postgres.sql(f"CREATE ROLE {login} LOGIN" + (f" IN ROLE {role}" if role else ""))
    return bare


@asynccontextmanager
async def opened(url: str, data: Path, *, migrate: bool = False) -> AsyncIterator[Sql]:
    store = Database(Settings(database_url=url, data_dir=data), SHOP, role="web")  # type: ignore[arg-type]
    await store.open(migrate=migrate)
    try:
        yield Sql(get_connection("default"))
    finally:
        await store.close()


@pytest.fixture
async def as_web(granted: Callable[[str], str], tmp_path: Path) -> AsyncIterator[Sql]:
    async with opened(granted("shop_web"), tmp_path) as sql:
        yield sql


def new_job(key: str | None = None, **more: Any) -> NewJob:
    spec = JobSpec("fake.work", {}, idempotency_key=key, tags=["a", "b"], **more)
    return prepare(spec, TASK, now=utcnow())


def delivery(id: str) -> InboxEntry:
    more = {"provider": "fake", "dedup_key": f"id:{id}", "received_at": utcnow()}
    return InboxEntry(id=new_id("dlv"), kind="webhook", body=b"{}", **more)  # type: ignore[arg-type]


# What the web does


async def test_the_web_submits_and_repeats(as_web: Sql) -> None:
    intake = Intake(Doorbell())
    first = await intake.add_job(new_job("k"))
    assert first.new
    assert await intake.add_job(new_job("k")) == Stored(first.id, False)
    with pytest.raises(Conflict):
        await intake.add_job(new_job("k", priority=3))
    assert (await queries.get_job("default", first.id))["status"] == "queued"


async def test_the_web_stores_groups_of_jobs_commands_and_deliveries(as_web: Sql) -> None:
    intake = Intake(Doorbell())
    waiting = prepare_adopted(
        JobSpec("fake.work"), TASK, "ext", now=utcnow(), tenant="default", webhooks=True
    )
    command = InboxEntry(id=new_id("cmd"), kind="command", body=b"{}", received_at=utcnow())
    items = [
        *(new_job() for _ in range(5)), new_job("same"), new_job("same"), new_job(delay=60),
        waiting, command, delivery("1"), delivery("1"), delivery("2"),
    ]  # fmt: skip
    said = await intake.add_all(items)
    assert [s.new for s in said if isinstance(s, Stored)] == [
        *([True] * 6), False, *([True] * 4), False, True,
    ]  # fmt: skip
    again = await intake.add_inbox(delivery("1"))
    assert (again.new, again.id) == (False, said[10].id)  # type: ignore[union-attr]


async def test_the_web_stores_the_applications_rows_with_their_job(as_web: Sql) -> None:
    intake = Intake(Doorbell())
    async with in_transaction() as tx:
        note = await Note.create(text="a fox", using_db=tx)
        stored = await intake.add_job_in(tx, new_job(entity=f"note:{note.id}"))
    assert (await queries.get_job("default", stored.id))["entity"] == f"note:{note.id}"
    assert await Note.filter(text="a fox").count() == 1


async def test_the_web_reads_what_it_shows(as_web: Sql) -> None:
    assert await keys.list_keys() == []
    assert await pauses.list_pauses() == []
    assert (await stretch("default", START, 10)).entries == []
    assert await queries.oldest_due(utcnow()) is None
    for table in our_tables():
        assert await as_web.rows(f"SELECT * FROM {table}") == []


# What is refused


def job_values(status: str) -> dict[str, str]:
    return {
        "id": "'job_1'", "tenant": "'default'", "task": "'a.b'", "status": f"'{status}'",
        "reason": "''", "attempt": "1", "max_attempts": "1", "policy": "'{}'", "abilities": "'{}'",
        "tags": "'[]'", "metadata": "'{}'", "created_at": "now()", "deadline": "now()",
        "version": "1", "priority": "0", "checks": "0",
    }  # fmt: skip


def insert(table: str, values: dict[str, str]) -> str:
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(values.values())})"


ENTRY = {
    "job_id": "'job_1'", "seq": "0", "tenant": "'default'", "envelope_id": "'x'",
    "source": "'api'", "event": "'submitted'", "fields": "'{}'", "disposition": "'applied'",
    "reason": "''", "status": "'queued'", "patch": "'{}'", "timers": "'{}'", "told_at": "now()",
    "decided_at": "now()", "random": "''", "machine": "1",
}  # fmt: skip
DENIED = "permission denied"


@pytest.mark.parametrize("status", sorted(FINAL))
async def test_the_web_cannot_insert_a_final_job(as_web: Sql, status: str) -> None:
    values = job_values(status)
    with pytest.raises(OperationalError, match=DENIED):
        await as_web.rows(insert("agentflow_jobs", values | {"finished_at": "now()"}))
    with pytest.raises(IntegrityError, match="agentflow_final_has_end"):
        await as_web.rows(insert("agentflow_jobs", values))
    await as_web.rows(insert("agentflow_jobs", job_values("queued") | {"wake_at": "now()"}))


async def test_the_web_inserts_history_as_it_does_and_not_otherwise(as_web: Sql) -> None:
    for column in ("id", "xact"):
        with pytest.raises(OperationalError, match=DENIED):
            await as_web.rows(insert("agentflow_history", ENTRY | {column: "7"}))
    await as_web.rows(insert("agentflow_history", ENTRY))


async def test_the_web_changes_and_deletes_nothing(as_web: Sql) -> None:
    await Intake(Doorbell()).add_job(new_job())
    refused = [
        "UPDATE agentflow_jobs SET status = 'queued'",
        "UPDATE agentflow_jobs SET priority = 100",
        "SELECT id FROM agentflow_jobs FOR UPDATE",
        "UPDATE note SET text = ''",
        "DELETE FROM note",
        "INSERT INTO agentflow_keys (id) VALUES ('a')",
        "INSERT INTO agentflow_handler_runs (id) VALUES ('a')",
        "INSERT INTO agentflow_usage (job_id) VALUES ('a')",
        "INSERT INTO agentflow_usage_tags (tag) VALUES ('a')",
        "INSERT INTO agentflow_budgets (id) VALUES ('a')",
        "INSERT INTO agentflow_reservations (amount) VALUES (-1)",
        "INSERT INTO tortoise_migrations (app) VALUES ('a')",
        "SELECT setval('agentflow_history_id_seq', 1)",
        "ALTER TABLE agentflow_jobs DROP CONSTRAINT agentflow_final_has_end",
        *(f"DELETE FROM {table}" for table in our_tables()),
        *(f"TRUNCATE {table}" for table in our_tables()),
        *(f"UPDATE {table} SET {_any_column(table)} = NULL" for table in our_tables()),
    ]
    for statement in refused:
        with pytest.raises(OperationalError, match=f"{DENIED}|must be owner"):
            await as_web.rows(statement)


def _any_column(table: str) -> str:
    named = {
        "agentflow_keys": "name",
        "agentflow_parked": "external_id",
        "agentflow_pauses": "note",
        "agentflow_reservations": "amount",
    }
    return named.get(table, "tenant")


async def test_a_worker_with_a_login_of_its_own_is_refused_everything(
    granted: Callable[[str], str], tmp_path: Path
) -> None:
    async with opened(granted("postgres"), tmp_path):
        tables = [*our_tables(), "note", "tortoise_migrations"]
    session = await asyncpg.connect(granted("shop_worker"))
    try:
        for table in tables:
            for statement in (
                f"SELECT count(*) FROM {table}",
                f"INSERT INTO {table} DEFAULT VALUES",
                f"DELETE FROM {table}",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await session.execute(statement)
    finally:
        await session.close()


# The grants themselves


async def test_each_login_has_its_rights_and_no_others(
    granted: Callable[[str], str], tmp_path: Path
) -> None:
    for login, wanted in (
        ("shop_web", web_rights), ("shop_writer", writer_rights), ("shop_worker", set),
    ):  # fmt: skip
        async with opened_unchecked(granted(login), tmp_path) as sql:
            assert await rights(sql) == wanted(), login


@asynccontextmanager
async def opened_unchecked(url: str, data: Path) -> AsyncIterator[Sql]:
    """For a login that may not even look at the schema's state."""
    store = Database(Settings(database_url=url, data_dir=data), SHOP, role="web")  # type: ignore[arg-type]
    await store.open(migrate=False, check=False)
    try:
        yield Sql(get_connection("default"))
    finally:
        await store.close()


ACL = (
    "SELECT relname, relacl::text, ARRAY(SELECT attname || attacl::text FROM pg_attribute"
    " WHERE attrelid = c.oid AND attacl IS NOT NULL ORDER BY attname)::text"
    " FROM pg_class c WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
)


async def test_granting_again_changes_nothing_and_takes_back_what_is_too_much(
    granted: Callable[[str], str], postgres: Postgres, tmp_path: Path
) -> None:
    name = granted("postgres").rpartition("/")[2]
    before = postgres.sql(ACL, name)
    assert WEB in before
    async with opened(granted("postgres"), tmp_path):
        await grant_roles()
        assert postgres.sql(ACL, name) == before
        postgres.sql(f"GRANT UPDATE, DELETE ON agentflow_jobs TO {WEB}", name)
        postgres.sql(f"GRANT INSERT (finished_at) ON agentflow_jobs TO {WEB}", name)
        postgres.sql(f"GRANT UPDATE ON note TO {WEB}", name)  # the application's own affair
        await grant_roles()
        postgres.sql(f"REVOKE UPDATE ON note FROM {WEB}", name)
        assert postgres.sql(ACL, name) == before


async def test_four_at_once_agree(
    bare: Callable[[str], str], postgres: Postgres, tmp_path: Path
) -> None:
    async with opened(bare("postgres"), tmp_path, migrate=True):
        await asyncio.gather(*(grant_roles() for _ in range(4)))
    assert postgres.sql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'agentflow_%'") == "2"


def test_who_may_not_create_roles_is_told_the_way(
    bare: Callable[[str], str], postgres: Postgres
) -> None:
    postgres.sql("CREATE ROLE shop_worker LOGIN")
    postgres.sql("CREATE DATABASE theirs OWNER shop_worker")
    env = {"AGENTFLOW_DATABASE_URL": postgres.url("theirs", "shop_worker")}
    try:
        refused = agentflow("migrate", "--roles", env=env)
        assert (refused.code, "CREATE ROLE agentflow_web NOLOGIN" in refused.err) == (2, True)
        for role in (WEB, WRITER):
            postgres.sql(f"CREATE ROLE {role} NOLOGIN")
        done = agentflow("migrate", "--roles", env=env)  # for granting, owning the tables is enough
        assert (done.code, "IN ROLE agentflow_web" in done.err) == (0, True)
    finally:
        postgres.drop_database("theirs")


def test_only_the_owner_migrates(granted: Callable[[str], str]) -> None:
    for login in ("shop_writer", "shop_worker"):
        ran = agentflow("migrate", "--roles", env={"AGENTFLOW_DATABASE_URL": granted(login)})
        assert (ran.code, "login that owns the tables" in ran.err) == (2, True), login


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    ran = agentflow("migrate", "--roles", "--data", str(tmp_path))
    assert (ran.code, "--roles is for PostgreSQL" in ran.err) == (2, True)


# All roles on their own logins

APPLICATION = """
from agentflow import AgentFlow, Result
from support.shop.models import Note

app = AgentFlow(models=["support.shop.models"], migrations="support.shop.migrations")


@app.task("shop.draw")
async def draw(call, input):
    return Result(output=f"{input['name']} is drawn")


@app.on("shop.draw", "succeeded")
async def keep(event, tx):
    await Note.create(text="drawn", using_db=tx)
    note = await Note.get(text="drawn", using_db=tx)
    await Note.filter(id=note.id).using_db(tx).update(job=event.job.id, text=event.result.output)
"""


class Role:
    """A process of `agentflow`, stopped in order at the end of the block."""

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        self._log = folder / f"{args[0]}.log"
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                [PROGRAM, *args], stderr=file, env=clean(**env), cwd=folder
            )

    def ready(self, said: str) -> str:
        """The word that follows what it says when it is ready."""
        until = time.monotonic() + 40
        while time.monotonic() < until and self._process.poll() is None:
            if found := re.search(rf"^agentflow \S+ {said}(\S*)", self._log.read_text(), re.M):
                return found[1]
            time.sleep(0.05)
        raise AssertionError(self._log.read_text())

    def __enter__(self) -> Role:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.terminate()
        try:
            assert self._process.wait(3 * PATIENCE) == 0, self._log.read_text()
        finally:
            self._process.kill()


async def test_a_job_goes_all_the_way_with_a_login_for_each_role(
    granted: Callable[[str], str], postgres: Postgres, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "drawing.py").write_text(APPLICATION)
    common = {
        "AGENTFLOW_APP": "drawing:app",
        "AGENTFLOW_REDIS_URL": redis_url,
        "AGENTFLOW_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    web = {"AGENTFLOW_DATABASE_URL": granted("shop_web")}
    writer = {**web, "AGENTFLOW_WRITER_DATABASE_URL": granted("shop_writer")}
    made = agentflow("keys", "create", "shop", "--json", env=writer)
    assert made.code == 0, made.err
    with ExitStack() as stack:
        start = stack.enter_context
        serving = start(Role(tmp_path, "serve", "--port", "0", **common, **web))
        others = [
            (start(Role(tmp_path, "writer", **common, **writer)), "is a writer"),
            (start(Role(tmp_path, "worker", **common)), "is a worker"),
        ]
        url = serving.ready("serves ")
        for other, said in others:
            other.ready(said)
        client = stack.enter_context(Client(url, made.json["key"]))
        job = client.submit("shop.draw", {"name": "a fox"})
        assert (await asyncio.to_thread(job.result, 3 * PATIENCE)).output == "a fox is drawn"
        canceled = client.submit("shop.draw", {"name": "a hen"}, delay=60)
        canceled.cancel()
        with pytest.raises(JobFailed):
            await asyncio.to_thread(canceled.result, 3 * PATIENCE)
    name = granted("postgres").rpartition("/")[2]
    assert postgres.sql("SELECT text, job FROM note", name) == f"a fox is drawn|{job.id}"
    assert postgres.sql("SELECT status FROM agentflow_jobs ORDER BY id", name).split() == [
        "succeeded",
        "canceled",
    ]
    audit = agentflow("audit", "--json", env=web)
    assert (audit.code, audit.json["clean"]) == (0, True)
