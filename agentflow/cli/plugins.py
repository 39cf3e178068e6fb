"""`agentflow plugins`: what is installed, what is wrong with it, and whether one is done."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentflow.cli.leaving import Code, leave, settings_checked
from agentflow.cli.options import AsJson

if TYPE_CHECKING:
    from agentflow.plugins.catalogue import Catalogue
    from agentflow.plugins.discovery import Plugin
    from agentflow.settings import Settings
    from agentflow.testing.report import Report

commands = typer.Typer(help="List the installed plugins, and what is wrong with them.")


@commands.callback(invoke_without_command=True)
def index(context: typer.Context, as_json: AsJson = False) -> None:
    """List the installed plugins, and what is wrong with them."""
    if context.invoked_subcommand is not None:
        return
    from agentflow.cli.showing import write_json, write_table
    from agentflow.settings import load_settings

    with settings_checked():
        known = installed(load_settings())
    found = [plugin_view(plugin, known) for plugin in known.plugins]
    if as_json:
        write_json({"items": found})
        return
    rows = [
        (p["name"], f"{p['distribution']} {p['version']}", ", ".join(p["tasks"]), p["problem"])
        for p in found
    ]
    columns = ("plugin", "from", "tasks", "problem")
    empty = "No plugin is installed. Try: pip install agentflow-replicate"
    write_table(columns, rows, empty, wrap=True)


def installed(settings: Settings) -> Catalogue:
    """Every plugin there is. What they print while they are loaded goes to standard error: standard
    output is for what the command says."""
    from agentflow.plugins.catalogue import Catalogue
    from agentflow.plugins.discovery import discover

    with redirect_stdout(sys.stderr):
        return Catalogue(discover(), (), settings.public_url)


def plugin_view(plugin: Plugin, known: Catalogue) -> dict[str, Any]:
    """`problem` is why it or a part of it is left out, and why webhooks are refused."""
    problem = known.problems.get(plugin.label)
    ready = [r for p in plugin.providers if (r := known.providers.get(p.name)) and r.provider is p]
    refused = {r.provider.name: r.webhook_problem for r in ready if r.webhook_problem}
    said = [f"webhooks{_of(name, plugin)}: {why}" for name, why in refused.items()]
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "providers": [p.name for p in plugin.providers],
        "tasks": [task for p in plugin.providers for task in sorted(p.tasks)],
        "usable": problem is None and bool(ready),
        "problem": "; ".join([problem, *said] if problem else said) or None,
    }


def _of(provider: str, plugin: Plugin) -> str:
    """Which of several."""
    return "" if provider == plugin.name else f" of {provider}"


@commands.command("test")
def judge(
    path: Annotated[Path, typer.Argument(help="The folder of the distribution, or a test file.")],
    check: Annotated[
        str | None, typer.Option("--check", "-k", help="Only checks whose name holds this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a plugin's conformance tests and say what to do about those that fail.

    In a process of its own, against the plugin's simulator: no key is needed. The plugin must be
    installed (pip install -e PATH), and pytest.
    """
    from agentflow.cli.showing import counting, write_json
    from agentflow.testing.report import run_suite

    if not path.exists():
        leave(Code.USAGE, f"There is no {path}")
    with counting("checks") as advance:
        report = run_suite(path, check, advance)
    if as_json:
        write_json(report.view())
    else:
        _write(report)
    if not report.ran:
        leave(Code.USAGE, report.trouble)
    raise typer.Exit(Code.FAILED if report.failed else Code.DONE)


def _write(report: Report) -> None:
    """A line for each check; below, in full, what the failed ones ask for."""
    from agentflow.cli.showing import short, write_table

    marks = {"passed": "ok", "failed": "fail", "skipped": "warn"}
    rows = [
        (marks[c.outcome], c.words, short(c.said, 90) if c.outcome == "skipped" else "")
        for c in report.checks
    ]
    write_table(("state", "check", "not done because"), rows, "No check was run.")
    for each in report.failed:
        typer.echo(f"\n{each.words}\n  {each.said}")
    if report.ran:
        typer.echo(f"\n{report.sentence}")
