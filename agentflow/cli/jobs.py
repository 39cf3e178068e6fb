"""`agentflow jobs`"""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentflow.cli.leaving import Code, connected, leave
from agentflow.cli.options import AsJson, Limit, Stream, Url

if TYPE_CHECKING:
    from agentflow.client import Event

Id = Annotated[str, typer.Argument(help="A job's id, job_…")]

commands = typer.Typer(
    help="List jobs; show, wait for, follow, cancel or retry one.", rich_markup_mode=None
)


@commands.callback(invoke_without_command=True)
def index(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="For instance failed.")] = None,
    task: Annotated[str | None, typer.Option(help="For instance replicate.predict.")] = None,
    entity: Annotated[str | None, typer.Option(help="type:id")] = None,
    tag: Annotated[str | None, typer.Option()] = None,
    since: Annotated[
        str | None, typer.Option(help="An instant, 2026-01-31T12:00 (local time) or with offset.")
    ] = None,
    limit: Limit = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first, or do something with one."""
    if context.invoked_subcommand is not None:
        return
    from agentflow.cli.showing import ago, percent, summary, write_json, write_table

    with connected(url) as client:
        wanted = {"status": status, "task": task, "entity": entity, "tag": tag}
        jobs = client.jobs(**wanted, since=_instant(since), page=min(limit, 200))
        found = [job.data for job in islice(jobs, limit)]
    if as_json:
        write_json({"items": found})
        return
    rows = [
        (j["id"], j["status"], percent(j["progress"]) if j["wake_at"] else "", ago(j["created_at"]),
         j["task"], j["entity"], j["attempt"] if j["attempt"] > 1 else "", summary(j))
        for j in found
    ]  # fmt: skip
    columns = ("id", "status", "done", "age", "task", "entity", "try", "why")
    write_table(columns, rows, "There are no such jobs.")


@commands.command()
def show(id: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Show a job."""
    from agentflow.cli.describing import write_job
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        job = client.job(id)
        if as_json:
            write_json(job.data)
        else:
            write_job(job, client.url)


@commands.command()
def wait(
    id: Id,
    timeout: Annotated[float | None, typer.Option(min=0, help="At most so many seconds.")] = None,
    stream: Stream = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a job's end; the exit code tells it."""
    from agentflow.cli.following import wait as follow

    follow(url, id, timeout, as_json=as_json, stream=stream)


@commands.command()
def events(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job is final.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's history."""
    from agentflow.cli.showing import write_json, write_line, write_table

    with connected(url) as client:
        job = client.job(id)
        if follow:
            for event in job.events():
                if as_json:
                    write_line(_entry(event))
                else:
                    typer.echo("  ".join(str(part) for part in _row(event) if part))
            return
        found = job.history()
    if as_json:
        write_json({"items": [_entry(event) for event in found]})
        return
    columns = ("seq", "at", "event", "source", "status", "reason", "done", "")
    write_table(columns, [_row(e) for e in found], "")


def _entry(event: Event) -> dict[str, Any]:
    import dataclasses

    return {**dataclasses.asdict(event), "at": event.at.isoformat()}


def _row(event: Event) -> tuple[Any, ...]:
    from agentflow.cli.showing import percent

    at = event.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    ignored = "ignored" if event.disposition == "ignored" else ""
    done = percent({"fraction": event.progress})
    return event.seq, at, event.event, event.source, event.status, event.reason, done, ignored


@commands.command()
def cancel(id: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Ask for a job's end."""
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        job = client.job(id)
        if job.final:
            leave(Code.FAILED, f"{id} is {job.status} already")
        job.cancel()
    if as_json:
        write_json(job.data)
    else:
        typer.echo(f"{job.id} is {job.status}")


@commands.command()
def retry(id: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Submit a final job again, as a new one."""
    from agentflow.cli.showing import write_json

    with connected(url) as client:
        job = client.job(id).retry()
    if as_json:
        write_json(job.data)
    else:
        typer.echo(job.id)


def _instant(given: str | None) -> datetime | None:
    try:
        return None if given is None else datetime.fromisoformat(given).astimezone()
    except ValueError:
        leave(Code.USAGE, f"--since {given}: an instant is written 2026-01-31T12:00:00+01:00")
