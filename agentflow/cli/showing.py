"""Tables and lines for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {
    "succeeded": "green",
    "applied": "green",
    "done": "green",
    "ok": "green",
    "failed": "red",
    "fail": "red",
    "expired": "red",
    "canceled": "yellow",
    "parked": "yellow",
    "warn": "yellow",
    "canceling": "yellow",
}


def console(*, err: bool = False) -> Console:
    return Console(stderr=err, highlight=False)


def write_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def write_line(value: Any) -> None:
    """JSON on one line, for streams."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """`empty` is said instead of a table without rows. Nothing is shortened when piped."""
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        # Ids stay whole so that they can be copied.
        table.add_column(name, no_wrap=name in ("id", "job", "run"), overflow="fold")
    found = [[cell(value) for value in row] for row in rows]
    for row in found:
        table.add_row(*row)
    if not found:
        typer.echo(empty, err=True)
    elif out.is_terminal:
        out.print(table)
    else:
        out.print(table, width=max(out.width, 400), crop=False, soft_wrap=False)


def write_fields(fields: Mapping[str, Any], *, err: bool = False) -> None:
    """`name  value` lines; fields without a value are left out."""
    out = console(err=err)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value not in (None, "", [], {}):
            table.add_row(name, cell(value))
    out.print(table)


def cell(value: Any) -> Text:
    """A value as one cell: whatever it holds, it cannot style or break the table."""
    match value:
        case None:
            text = ""
        case str():
            text = value
        case _:
            text = json.dumps(value, ensure_ascii=False)
    plain = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    return Text(plain, style=STYLES.get(plain, ""))


def short(text: str | None, most: int = 60) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def ago(instant: str | None) -> str:
    """`12 s`, `3 min`, `5 h`, `2 d` since an RFC 3339 instant."""
    if instant is None:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(instant)).total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def percent(progress: Mapping[str, Any]) -> str:
    fraction = progress.get("fraction")
    return "" if fraction is None else f"{100 * fraction:.0f}%"


def summary(job: Mapping[str, Any]) -> str:
    """Why a job is where it is, in a few words."""
    if job["error"]:
        return f"{job['error']['kind']}: {short(job['error']['message'])}"
    words = job["phase"] or job["reason"]
    return "" if words == job["status"] else str(words).replace("_", " ")
