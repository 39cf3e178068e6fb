"""Tables and lines for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

_WHOLE = ("id", "status", "age", "state", "check")
"""Columns that are never shortened: ids are to be copied."""
_LEAST = 12
"""Characters the others keep, if the terminal is wide enough at all."""


def console(*, err: bool = False) -> Console:
    return Console(stderr=err, highlight=False)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of so many `what` on standard error while the block runs, if that is a terminal; it is
    told how many are done, of how many."""
    out = console(err=True)
    if not out.is_terminal:
        yield lambda _done, _all: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
    )
    row = bar.add_task(what, total=None)
    with bar:
        yield lambda done, of: bar.update(row, completed=done, total=of)


def write_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def write_line(value: Any) -> None:
    """JSON on one line, for streams."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def write_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str, *, wrap: bool = False
) -> None:
    """One line per row, shortened to fit a terminal (`wrap` instead wraps), whole when piped.

    Columns without any value are left out. `empty` is said instead of a table without rows.
    """
    found = [[cell(value) for value in row] for row in rows]
    if not found:
        typer.echo(empty, err=True)
        return
    used = [i for i in range(len(columns)) if any(row[i] for row in found)]
    names, found = [columns[i] for i in used], [[row[i] for i in used] for row in found]
    out = console()
    if out.is_terminal:
        out.print(_table(names, found, wrap))
        return
    lines = [names, *([text.plain for text in row] for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _table(names: Sequence[str], rows: Sequence[Sequence[Text]], wrap: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(names):
        whole = name in _WHOLE
        widest = max(len(row[index]) for row in rows)
        least = widest if whole else min(widest, _LEAST)
        table.add_column(name, no_wrap=whole or not wrap, min_width=least)
    for row in rows:
        table.add_row(*row)
    return table


def write_fields(fields: Mapping[str, Any], *, err: bool = False) -> None:
    """`name  value` lines; fields without a value are left out."""
    shown = {name: cell(value) for name, value in fields.items() if value not in (None, "", [], {})}
    width = max(map(len, shown), default=0)
    out = console(err=err)
    for name, value in shown.items():
        out.print(Text(f"{name:{width}}  ", style="dim"), value, sep="", soft_wrap=True)


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


_PHASES = {
    "provider": "at the provider",
    "submit_unknown": "outcome unknown",
    "collecting": "copying files",
}


def summary(job: Mapping[str, Any]) -> str:
    """Why a job is where it is, in a few words."""
    if job["error"]:
        return f"{job['error']['kind']}: {short(job['error']['message'], 200)}"
    words = _PHASES.get(job["phase"]) or job["reason"].replace("_", " ")
    return "" if words == job["status"] else words


def local(instant: str | None) -> str | None:
    """An RFC 3339 instant in local time, to the second."""
    if instant is None:
        return None
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")
