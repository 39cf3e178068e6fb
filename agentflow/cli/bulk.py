"""`agentflow jobs cancel-all` and `retry-all`"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentflow.cli.leaving import Code, connected, leave
from agentflow.cli.options import AsJson, Url

if TYPE_CHECKING:
    from agentflow.client import Bulk

Status = Annotated[str | None, typer.Option(help="For instance failed.")]
TaskName = Annotated[str | None, typer.Option(help="For instance replicate.predict.")]
Entity = Annotated[str | None, typer.Option(help="type:id")]
Tag = Annotated[str | None, typer.Option()]
Since = Annotated[
    str | None, typer.Option(help="An instant, 2026-01-31T12:00 (local time) or with offset.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without this, only say to how many.")]
Most = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")]


def cancel_all(
    status: Status = None,
    task: TaskName = None,
    entity: Entity = None,
    tag: Tag = None,
    since: Since = None,
    yes: Yes = False,
    limit: Most = 1000,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Ask for the end of all open jobs of a filter."""
    wanted = _wanted(status, task, entity, tag, since)
    with connected(url) as client:
        did = client.cancel_many(dry_run=not yes, limit=limit, **wanted)
    _write(did, "cancel", as_json=as_json)


def retry_all(
    status: Status = None,
    task: TaskName = None,
    entity: Entity = None,
    tag: Tag = None,
    since: Since = None,
    yes: Yes = False,
    limit: Most = 1000,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit all failed, canceled and expired jobs of a filter again, each once."""
    wanted = _wanted(status, task, entity, tag, since)
    with connected(url) as client:
        did = client.retry_many(dry_run=not yes, limit=limit, **wanted)
    _write(did, "retry", as_json=as_json)


def _wanted(
    status: str | None, task: str | None, entity: str | None, tag: str | None, since: str | None
) -> Any:
    try:
        at = None if since is None else datetime.fromisoformat(since).astimezone()
    except ValueError:
        leave(Code.USAGE, f"--since {since}: an instant is written 2026-01-31T12:00:00+01:00")
    return {"status": status, "task": task, "entity": entity, "tag": tag, "since": at}


def _write(did: Bulk, verb: str, *, as_json: bool) -> None:
    from agentflow.cli.showing import write_json

    if as_json:
        write_json(dataclasses.asdict(did))
        return
    for id in did.ids:
        typer.echo(id)
    if did.dry_run:
        typer.echo(f"{len(did.ids)} jobs fit; --yes will {verb} them", err=True)
    else:
        typer.echo(f"{did.done} of {len(did.ids)} done", err=True)
    if did.more:
        typer.echo("There are more: say it again for the next.", err=True)
