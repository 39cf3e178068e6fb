"""`agentflow pause` and `agentflow resume`"""

from __future__ import annotations

from typing import Annotated

import typer

from agentflow.cli.leaving import connected
from agentflow.cli.options import AsJson, Url

Target = typer.Argument(help="A provider or a task: replicate, replicate.predict.")


def pause(
    target: Annotated[str | None, Target] = None,
    note: Annotated[str | None, typer.Option(help="Why, for those who wonder.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Start no more jobs of a task or a provider, or list what is paused.

    What has begun goes on to its end.
    """
    from agentflow.cli.showing import ago, write_json, write_table

    with connected(url) as client:
        said = client.pause(target, note) if target is not None else None
        found = client.pauses() if said is None else []
    if as_json:
        write_json({"items": found} if said is None else said)
    elif said is None:
        rows = [(p["target"], ago(p["created_at"]), p["note"]) for p in found]
        write_table(("target", "age", "note"), rows, "Nothing is paused.")
    else:
        typer.echo(f"{target} pauses; agentflow resume {target} ends it")


def resume(
    target: Annotated[str, Target],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Let the jobs go on that a pause holds."""
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        said = client.resume(target)
    if as_json:
        write_json(said)
    else:
        typer.echo(f"{target} goes on")
