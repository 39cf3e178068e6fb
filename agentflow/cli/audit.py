"""`agentflow audit`: is every row what its history says?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from agentflow.cli.leaving import Code, leave, settings_checked
from agentflow.cli.options import AsJson, Data

if TYPE_CHECKING:
    from agentflow.audit.auditor import Audit
    from agentflow.audit.finding import Finding
    from agentflow.audit.reading import Snapshots
    from agentflow.settings import Settings

SHOWN = 500
"""Faults, and as many warnings, are listed one by one; the others are only counted."""

Advance: TypeAlias = Callable[[int, int], None]
"""Takes the jobs looked at, and how many there are."""


@dataclass(slots=True)
class Report:
    """What came of an audit."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    clean: bool = True

    def add(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.counts[finding.kind.value] += 1
            self.clean &= finding.warning
            kept = self.warnings if finding.warning else self.wrong
            if len(kept) < SHOWN:
                kept.append(finding)

    @property
    def items(self) -> list[Finding]:
        """What is wrong, then the warnings."""
        return [*self.wrong, *self.warnings]

    @property
    def verdict(self) -> str:
        if not self.counts:
            return "all is right"
        from agentflow.audit.finding import WARNINGS

        warnings = sum(self.counts[kind.value] for kind in WARNINGS)
        return f"{self.counts.total() - warnings} wrong, {warnings} warnings"


def audit(
    data: Data = None,
    job: Annotated[str | None, typer.Option("--job", help="Look at this job only.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only what is newer: 2026-01-31T12:00, local or with offset.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fold every history to its row and decide everything again.

    It only reads, also beside a running server. The exit code is 1 if something is wrong.
    """
    import asyncio
    import sqlite3

    from agentflow.cli.showing import counting
    from agentflow.settings import load_settings

    began = time.monotonic()
    with settings_checked():
        settings = load_settings(data_dir=data)
        try:
            with counting("jobs") as advance:
                done, report = asyncio.run(_audited(settings, job, _instant(since), advance))
        except sqlite3.DatabaseError as error:
            leave(Code.USAGE, f"The database cannot be read: {error}")
    if job is not None and not done.jobs:
        leave(Code.FAILED, f"There is no job {job}")
    _show(done, report, time.monotonic() - began, as_json=as_json)
    raise typer.Exit(Code.DONE if report.clean else Code.FAILED)


def _opened(settings: Settings) -> AbstractAsyncContextManager[Snapshots]:
    """The database, for reading."""
    if settings.database("reader"):
        from agentflow.audit.scaled import snapshots_of_server

        return snapshots_of_server(settings)
    from agentflow.audit.embedded import snapshots_of

    return snapshots_of(settings.data_dir / "agentflow.db")


async def _audited(
    settings: Settings, job: str | None, since: datetime | None, advance: Advance
) -> tuple[Audit, Report]:
    from agentflow.audit.auditor import Audit
    from agentflow.types import utcnow

    report = Report()
    async with _opened(settings) as snapshots:
        audit = Audit(snapshots, now=utcnow(), since=since, job=job)
        size = await audit.size()
        advance(0, size)
        async for findings in audit.pages():
            report.add(findings)
            advance(audit.jobs, size)
    return audit, report


def _show(done: Audit, report: Report, seconds: float, *, as_json: bool) -> None:
    from agentflow.cli.showing import write_json, write_table

    if as_json:
        write_json(_view(done, report))
        return
    rows = [(f.kind.value, f.id, f.seq, f.detail) for f in report.items]
    if rows:
        write_table(("kind", "id", "entry", "found"), rows, "", wrap=True)
    total = report.counts.total()
    if total > len(rows):
        typer.echo(f"and {total - len(rows)} more", err=True)
    looked = f"{done.jobs} jobs, {done.entries} entries, {done.deliveries} deliveries"
    typer.echo(f"{looked} in {seconds:.1f} s: {report.verdict}", err=True)


def _view(done: Audit, report: Report) -> dict[str, Any]:
    items = [
        {"kind": f.kind.value, "warning": f.warning, "id": f.id, "seq": f.seq, "detail": f.detail}
        for f in report.items
    ]
    return {
        "clean": report.clean,
        "jobs": done.jobs,
        "entries": done.entries,
        "decided_again": done.decided_again,
        "deliveries": done.deliveries,
        "counts": dict(report.counts),
        "items": items,
    }


def _instant(given: str | None) -> datetime | None:
    try:
        return None if given is None else datetime.fromisoformat(given).astimezone()
    except ValueError:
        leave(Code.USAGE, f"--since {given}: an instant is written 2026-01-31T12:00:00+01:00")
