"""The commands put together, and what their exit codes mean."""

from __future__ import annotations

from typing import Annotated

import typer

from agentflow.cli import (
    audit,
    bulk,
    deliveries,
    dev,
    doctor,
    here,
    jobs,
    keys,
    pauses,
    plugins,
    roles,
    scaffold,
    submit,
    usage,
)
from agentflow.types import VERSION

EPILOG = (
    "Exit codes: 0 done; 1 the job did not succeed, or there is no such thing; 2 wrong use;"
    " 3 the server cannot be reached; 4 time is up."
)

program = typer.Typer(
    name="agentflow",
    help="Runs slow, paid, unreliable provider calls and never loses track of one.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentflow {VERSION}")
        raise typer.Exit


@program.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


program.command("demo")(here.demo)
program.command("dev")(dev.dev)
program.command("serve")(roles.serve)
program.command("worker")(roles.worker)
program.command("writer")(roles.writer)
program.command("submit")(submit.submit)
jobs.commands.command("cancel-all")(bulk.cancel_all)
jobs.commands.command("retry-all")(bulk.retry_all)
program.add_typer(jobs.commands, name="jobs")
program.command("pause")(pauses.pause)
program.command("resume")(pauses.resume)
program.command("usage")(usage.usage)
program.add_typer(usage.commands, name="budgets")
program.add_typer(deliveries.commands, name="deliveries")
program.add_typer(deliveries.handlers, name="handlers")
program.add_typer(keys.commands, name="keys")
program.add_typer(plugins.commands, name="plugins")
program.command("new-plugin")(scaffold.new_plugin)
program.command("migrate")(here.migrate)
program.command("audit")(audit.audit)
program.command("doctor")(doctor.doctor)


def main() -> None:
    """The entry point `agentflow`."""
    program()
