"""`agentflow deliveries` and `agentflow handlers`"""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from agentflow.cli.leaving import connected
from agentflow.cli.options import AsJson, Limit, Url

commands = typer.Typer(
    help="List the webhooks received; show one, or have it read again.", rich_markup_mode=None
)
handlers = typer.Typer(
    help="List runs of handlers owed or set aside; retry one.",
    rich_markup_mode=None,
)


@commands.callback(invoke_without_command=True)
def index(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="For instance parked.")] = None,
    provider: Annotated[str | None, typer.Option(help="For instance replicate.")] = None,
    limit: Limit = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List webhooks, newest first, or do something with one."""
    if context.invoked_subcommand is not None:
        return
    from agentflow.cli.showing import ago, write_json, write_table

    with connected(url) as client:
        pages = client.deliveries(status=status, provider=provider, page=min(limit, 200))
        found = list(islice(pages, limit))
    if as_json:
        write_json({"items": found})
        return
    rows = [
        (d["id"], d["status"], ago(d["received_at"]), d["provider"], d["type"],
         d["error"] or (d["reason"] or "").replace("_", " "), d["job_id"])
        for d in found
    ]  # fmt: skip
    columns = ("id", "status", "age", "provider", "type", "why", "about")
    write_table(columns, rows, "There are no such deliveries.")


@commands.command()
def show(
    id: Annotated[str, typer.Argument(help="A delivery's id, dlv_…")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show a webhook with its body."""
    from agentflow.cli.showing import write_fields, write_json

    with connected(url) as client:
        found = client.delivery(id)
    if as_json:
        write_json(found)
    else:
        write_fields(found)


@commands.command()
def replay(
    id: Annotated[str, typer.Argument(help="A delivery's id, dlv_…")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Have a stored webhook read again, with today's code."""
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        said = client.replay(id)
        found = client.delivery(id)
    if as_json:
        write_json({**said, "delivery": found})
    else:
        why = f" ({found['reason'].replace('_', ' ')})" if found["reason"] else ""
        typer.echo(f"{id} was read again: {found['status']}{why}")


@handlers.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="pending, parked or done")] = None,
    limit: Limit = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List handler runs, newest first, or retry one."""
    if context.invoked_subcommand is not None:
        return
    from agentflow.cli.showing import ago, short, write_json, write_table

    with connected(url) as client:
        found = list(islice(client.handler_runs(status=status, page=min(limit, 200)), limit))
    if as_json:
        write_json({"items": found})
        return
    rows = [
        (r["id"], r["status"], ago(r["created_at"]), r["handler"], r["kind"], r["tries"],
         short((r["error"] or "").strip().rpartition("\n")[2], 200), r["job_id"] or r["inbox_id"])
        for r in found
    ]  # fmt: skip
    columns = ("id", "status", "age", "handler", "event", "tries", "error", "about")
    write_table(columns, rows, "There are no such runs.")


@handlers.command("retry")
def retry(
    id: Annotated[str, typer.Argument(help="A run's id, run_…")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Run a handler again that was set aside."""
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        said = client.retry_handler(id)
    if as_json:
        write_json(said)
    else:
        typer.echo(f"{id} runs again; see agentflow handlers")
