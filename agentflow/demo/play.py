"""The demo from its first line to its exit code."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentflow import logs
from agentflow.client import Client, ClientError, Job
from agentflow.demo.board import STYLES, Board, board
from agentflow.demo.evidence import Trail
from agentflow.demo.stage import Stage, stage
from agentflow.demo.stories import STORIES

LIMIT = 25.0
"""Seconds for all jobs to end."""

LATE = 4.0
"""Seconds for what comes after the ends: webhooks held back, the second of two."""

TASK = "replicate.predict"


def run(data: Path | None = None) -> int:
    """Play it and return the exit code: 0 if every job ended and healed as it should, else 1."""
    console = Console(highlight=False)
    folder = data or _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.log").open("a", encoding="utf-8") as log:
        logs.configure("INFO", stream=log)
        console.print(
            f"[bold]{len(STORIES)} predictions[/] on a simulated Replicate that loses,"
            " repeats and forges webhooks,\nlimits rates and breaks connections, all on this"
            " machine: no key is needed.\n"
        )
        with stage(folder) as built, Client(built.url) as client:
            return _play(console, client, built, folder)


def _play(console: Console, client: Client, built: Stage, folder: Path) -> int:
    began = time.monotonic()
    jobs = [client.submit(TASK, story.input, tags=["demo"]) for story in STORIES]
    with board(console, [story.name for story in STORIES]) as shown:
        _watch(jobs, shown, until=began + LIMIT)
    took = time.monotonic() - began
    trails, proofs = _proofs(client, jobs, built)
    console.print()
    console.print(_table(trails, proofs))
    _count(console, trails, built, took)
    _keep(console, client, trails, folder)
    _next(console, folder)
    good = all(proofs) and all(t.job.status == s.ends for t, s in zip(trails, STORIES, strict=True))
    return 0 if good and _at_most_once(built) else 1


def _watch(jobs: Sequence[Job], shown: Board, until: float) -> None:
    """Follow all jobs at once until they are final or time is up."""
    threads = []
    for index, (job, story) in enumerate(zip(jobs, STORIES, strict=True)):
        thread = threading.Thread(target=_follow, args=(index, job, shown), daemon=True)
        thread.start()
        threads.append(thread)
        if story.cancel_after is not None:
            timer = threading.Timer(story.cancel_after, _cancel, (job,))
            timer.daemon = True
            timer.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _follow(index: int, job: Job, shown: Board) -> None:
    with suppress(ClientError):  # the job is judged by what the server says afterwards
        for event in job.events():
            shown.tell(index, event)


def _cancel(job: Job) -> None:
    with suppress(ClientError):  # as above
        job.cancel()


def _proofs(
    client: Client, jobs: Sequence[Job], built: Stage
) -> tuple[list[Trail], list[str | None]]:
    """The records of all jobs, read again until they hold what was to be seen or `LATE` is over."""
    until = time.monotonic() + LATE
    while True:
        trails = _trails(client, jobs, built)
        proofs = [s.check(t) for s, t in zip(STORIES, trails, strict=True)]
        if all(proofs) or time.monotonic() > until:
            return trails, proofs
        time.sleep(0.25)


def _trails(client: Client, jobs: Sequence[Job], built: Stage) -> list[Trail]:
    deliveries = list(client.deliveries(page=200))
    return [
        Trail(
            job.refresh(),
            job.history(),
            [d for d in deliveries if d["job_id"] == job.id],
            built.stats,
        )
        for job in jobs
    ]


def _table(trails: Sequence[Trail], proofs: Sequence[str | None]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what befell it", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    table.add_column("tries", justify="right")
    table.add_column("what its history shows")
    for story, trail, proof in zip(STORIES, trails, proofs, strict=True):
        status = trail.job.status
        style = STYLES.get(status, "cyan") if status == story.ends else "bold red"
        seen = proof or "[bold red]not seen[/]"
        table.add_row(story.name, f"[{style}]{status}[/]", str(trail.job.data["attempt"]), seen)
    return table


def _at_most_once(built: Stage) -> bool:
    return max(built.stats.created.values(), default=0) <= 1


def _count(console: Console, trails: Sequence[Trail], built: Stage, took: float) -> None:
    made, limited = sum(built.stats.created.values()), built.stats.faults["rate_limit"]
    attempts = sum(t.job.data["attempt"] for t in trails)
    twice = "none was made twice" if _at_most_once(built) else "[bold red]some were made twice[/]"
    ended = sum(t.job.final for t in trails)
    console.print(
        f"\n{ended} of {len(trails)} jobs ended in {took:.0f} s. {attempts} attempts made {made}"
        f" predictions ({limited} stopped at the rate limit); {twice}."
    )


def _keep(console: Console, client: Client, trails: Sequence[Trail], folder: Path) -> None:
    """Copy the pictures out by name, as a user would."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    kept = []
    for story, trail in zip(STORIES, trails, strict=True):
        for file in (trail.job.data["result"] or {}).get("artifacts", []):
            if file["status"] == "stored":
                name = f"{story.name.replace(' ', '-').replace(',', '')}.png"
                kept.append(client.download(file["id"], pictures / name))
    console.print(f"{len(kept)} pictures lie in {_short(pictures)}; the log is", end=" ")
    console.print(f"{_short(folder / 'demo.log')}.")


def _next(console: Console, folder: Path) -> None:
    program = _program()
    order = '{"model":"acme/painter","input":{"prompt":"a fox"}}'
    console.print("\nTry next, the first in a terminal of its own:")
    for line in (
        f"{program} dev --simulate --data {shlex.quote(_short(folder))}",
        f"{program} submit {TASK} {shlex.quote(order)}",
        f"{program} jobs",
    ):
        console.print(f"  [bold]{line}[/]", soft_wrap=True, markup=True)


def _program() -> str:
    """How this very program is called from here."""
    found = shutil.which("agentflow")
    if found is not None and os.path.realpath(found) == os.path.realpath(sys.argv[0]):
        return "agentflow"
    return shlex.quote(_short(Path(sys.argv[0])))


def _folder() -> Path:
    """A fresh one below the working directory, or among the temporary files."""
    name = f"demo-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    if os.access(Path.cwd(), os.W_OK):
        return Path(".agentflow") / name
    return Path(tempfile.gettempdir()) / f"agentflow-{name}"


def _short(path: Path) -> str:
    """Relative to the working directory where that is shorter."""
    absolute = path.absolute()
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)
