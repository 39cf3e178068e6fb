"""`agentflow usage` and `agentflow budgets`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentflow.cli.leaving import Code, connected, leave
from agentflow.cli.options import AsJson, Url

commands = typer.Typer(
    help="Cap what calls may cost: of a tenant, or of one of its tags.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Tenant = typer.Option("--tenant", help="Whose calls.")


def usage(
    by: Annotated[
        str, typer.Option("--by", help="task, model, tag, tenant, day, month; several with commas.")
    ] = "task",
    since: Annotated[
        str | None, typer.Option(help="Calls that ended then or later: 2026-11-01, or an instant.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Calls that ended before.")] = None,
    task: Annotated[str | None, typer.Option(help="Calls of this task.")] = None,
    model: Annotated[str | None, typer.Option(help="Calls of this model.")] = None,
    tag: Annotated[str | None, typer.Option(help="Calls of jobs with this tag.")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Another tenant's, or * for all: for operators.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Sum up what calls used and cost.

    A cost that nobody knows is counted as unknown, never as nothing.
    """
    from agentflow.cli.showing import write_json, write_table

    asked: dict[str, Any] = {
        "since": _instant("--since", since), "until": _instant("--until", until), "task": task,
        "model": model, "tag": tag, "tenant": tenant,
    }  # fmt: skip
    with connected(url) as client:
        said = client.usage(group_by=by, **asked)
    if as_json:
        write_json(said)
        return
    columns = [*by.split(","), "calls", "unknown", "cost", "usage"]
    rows = [
        (*(str(each["group"].get(name) or "-") for name in by.split(",")), each["calls"],
         each["unknown"], _sums(each["costs"]), _units(each["usage"]))
        for each in said["items"]
    ]  # fmt: skip
    write_table(columns, rows, "No call has ended.")
    if said["more"]:
        typer.echo("There are more groups: narrow it down.", err=True)


@commands.command("set")
def set_budget(
    cap: Annotated[str, typer.Argument(help="What calls may cost in one period, as 100.")],
    per_call: Annotated[
        str, typer.Option(help="What to set aside for a call no price gives a bound for.")
    ],
    tenant: Annotated[str, Tenant] = "default",
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    period: Annotated[str, typer.Option(help="day, month or total.")] = "month",
    currency: Annotated[str, typer.Option(help="ISO 4217.")] = "USD",
    note: Annotated[str | None, typer.Option(help="Why, for those who wonder.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a budget, or change the one of this tenant, tag and period.

    A call that would not fit is not made: its job fails with quota_exceeded, or waits while calls
    under way may leave it room.
    """
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        said = client.set_budget(
            cap, per_call=per_call, tenant=tenant, tag=tag, period=period, currency=currency,
            note=note,
        )  # fmt: skip
    if as_json:
        write_json(said)
    else:
        typer.echo("The budget holds; agentflow budgets list shows it")


@commands.command("list")
def index(url: Url = None, as_json: AsJson = False) -> None:
    """List the budgets, with what is spent and set aside."""
    from agentflow.cli.showing import write_json, write_table

    with connected(url) as client:
        found = client.budgets()
    if as_json:
        write_json({"items": found})
        return
    rows = [
        (b["id"], b["tenant"], b["tag"] or "-", b["period"], f"{b['cap']} {b['currency']}",
         b["spent"], b["reserved"], b["left"], b["note"])
        for b in found
    ]  # fmt: skip
    columns = ("id", "tenant", "tag", "period", "cap", "spent", "reserved", "left", "note")
    write_table(columns, rows, "There are no budgets.")


@commands.command()
def remove(
    id: Annotated[str, typer.Argument(help="The budget's id: bud_…")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Remove a budget: nothing is held back by it any more."""
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        said = client.remove_budget(id)
    if as_json:
        write_json(said)
    else:
        typer.echo(f"{id} is removed")


def _instant(option: str, said: str | None) -> Any:
    """A day of UTC, or an instant."""
    from datetime import UTC, datetime

    if said is None:
        return None
    try:
        at = datetime.fromisoformat(said)
    except ValueError:
        leave(Code.USAGE, f"{option} is a day, as 2026-11-01, or an instant")
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _sums(costs: list[dict[str, str]]) -> str:
    return ", ".join(f"{cost['amount']} {cost['currency']}" for cost in costs) or "-"


def _units(usage: dict[str, float]) -> str:
    return ", ".join(f"{name} {count:g}" for name, count in usage.items())
