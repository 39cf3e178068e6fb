"""Commands that need no server: `agentflow demo`, `migrate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentflow.cli.leaving import settings_checked
from agentflow.cli.options import AppName, AsJson, Data


def demo(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Where its files go; by default a new folder in .agentflow."),
    ] = None,
) -> None:
    """Watch a dozen predictions survive what networks do.

    Needs no key and no server, and ends by itself.
    """
    from agentflow.demo import run

    try:
        with settings_checked():
            code = run(data)
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def migrate(
    data: Data = None,
    app: AppName = None,
    roles: Annotated[
        bool,
        typer.Option("--roles", help="Make PostgreSQL's roles for web and writer, or renew them."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the database up to date; one process alone does so itself at its start.

    On PostgreSQL as the owner of the tables, beside servers that run.
    """
    import asyncio

    from agentflow.cli.loading import load_app
    from agentflow.cli.migrating import NEXT, migrated
    from agentflow.cli.showing import write_json
    from agentflow.settings import load_settings

    with settings_checked():
        settings = load_settings(data_dir=data, app=app)
        models = load_app(settings.app).models if settings.app else None
        place, applied = asyncio.run(migrated(settings, models, roles=roles))
    if as_json:
        write_json({"database": place, "applied": applied, "roles": roles})
        return
    done = f": applied {', '.join(applied)}" if applied else " is up to date"
    typer.echo(f"{place}{done}")
    if roles:
        typer.echo(NEXT, err=True)
