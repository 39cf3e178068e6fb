"""`agentflow keys`: on the database itself, whether or not a server runs on it"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentflow.cli.leaving import Code, leave, settings_checked
from agentflow.cli.options import AsJson, Data

if TYPE_CHECKING:
    from agentflow.settings import Settings
    from agentflow.store.keys import Key

T = TypeVar("T")

commands = typer.Typer(
    help="Make, list and revoke the API keys of this server.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Tenant = typer.Option("--tenant", help="Whose jobs the key opens; tenants never see each other.")

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, in your own words.")],
    tenant: Annotated[str, Tenant] = "default",
    scope: Annotated[str, typer.Option(help="read, write or admin.")] = "write",
    expires: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="Days after which it ends.")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    from agentflow.cli.showing import write_json

    made, key = _new(name, tenant, scope, expires)

    async def add() -> None:
        from agentflow.store.keys import add_key

        await add_key(made)

    _run(data, add)
    if as_json:
        write_json({**_view(made), "key": key})
        return
    typer.echo(key)
    typer.echo("Keep it now: only its hash is stored, and it is not shown again.", err=True)


@commands.command("list")
def index(
    tenant: Annotated[str | None, Tenant] = None, data: Data = None, as_json: AsJson = False
) -> None:
    """List the keys, without their secrets."""
    from agentflow.cli.showing import ago, local, write_json, write_table

    async def found() -> list[Key]:
        from agentflow.store.keys import list_keys

        return await list_keys(tenant)

    keys = [_view(key) for key in _run(data, found)]
    if as_json:
        write_json({"items": keys})
        return
    rows = [
        (k["id"], k["state"], ago(k["created_at"]), k["tenant"], k["scope"], k["name"],
         local(k["expires_at"]))
        for k in keys
    ]  # fmt: skip
    columns = ("id", "state", "age", "tenant", "scope", "name", "expires")
    write_table(columns, rows, "There are no keys. Make one: agentflow keys create NAME")


@commands.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id: what stands between af_ and _.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make a key good for nothing. Running servers know it two seconds later."""
    from agentflow.cli.showing import write_json

    async def revoked() -> Key:
        from agentflow.store.keys import key_id, revoke_key
        from agentflow.types import utcnow

        return await revoke_key(key_id(id) or id, utcnow())

    key = _run(data, revoked)
    if as_json:
        write_json(_view(key))
    else:
        typer.echo(f"{key.id} ({key.name}) is revoked")


def _new(name: str, tenant: str, scope: str, days: float | None) -> tuple[Key, str]:
    """The row and the whole key; what does not fit ends the program."""
    from datetime import timedelta

    from agentflow.store.keys import SCOPES, Key, digest, new_key
    from agentflow.types import utcnow

    if not 0 < len(name) <= 100 or not name.isprintable():
        leave(Code.USAGE, "NAME is up to 100 characters on one line")
    if not _TENANT.fullmatch(tenant):
        leave(Code.USAGE, "--tenant is up to 64 letters, digits and _.-")
    if scope not in SCOPES:
        leave(Code.USAGE, f"--scope is one of {', '.join(SCOPES)}")
    id, key = new_key()
    now = utcnow()
    expires = None if days is None else now + timedelta(days=days)
    return Key(id, tenant, name, scope, digest(key), now, expires), key


def _run(data: str | None, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` makes of the opened database; expected trouble ends the program."""
    import asyncio

    from tortoise.exceptions import BaseORMException

    from agentflow.errors import NotFound, StoreUnavailable
    from agentflow.settings import load_settings

    async def main() -> T:
        async with _database(load_settings(data_dir=data, require_keys=True)):
            return await work()

    try:
        with settings_checked():
            return asyncio.run(main())
    except NotFound as error:
        leave(Code.FAILED, str(error))
    except (BaseORMException, StoreUnavailable) as error:
        leave(Code.UNREACHABLE, f"The database does not answer ({error}): try again")


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[None]:
    """The database, open beside a server that may run on it: without the data directory's lock.
    One that is not there yet is made. Raises `SettingsError`."""
    from agentflow.cli.migrating import migrated
    from agentflow.store.database import Database, Models

    database = Database(settings, Models())
    if database.url is None and not (settings.data_dir / "agentflow.db").exists():
        await migrated(settings, None)
    try:
        await database.open(migrate=False)
        yield
    finally:
        await database.close()


def _view(key: Key) -> dict[str, Any]:
    from agentflow.store.queries import rfc3339
    from agentflow.types import utcnow

    state = "ok" if key.good(utcnow()) else "revoked" if key.revoked_at else "expired"
    return {
        "id": key.id,
        "state": state,
        "tenant": key.tenant,
        "name": key.name,
        "scope": key.scope,
        "created_at": rfc3339(key.created_at),
        "expires_at": rfc3339(key.expires_at),
        "revoked_at": rfc3339(key.revoked_at),
    }
