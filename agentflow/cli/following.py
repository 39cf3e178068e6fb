"""Waiting for a job: a bar at a terminal, silence elsewhere, and the exit code at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from agentflow.cli.describing import write_job
from agentflow.cli.leaving import Code, connected, leave
from agentflow.cli.showing import console, percent, write_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from agentflow.client import Job


REPEATS = 6
"""Tries to reach the server again while waiting, over some twelve seconds: it may restart."""


def wait(
    url: str | None, id: str, timeout: float | None, *, as_json: bool, stream: bool = False
) -> NoReturn:
    """Follow the job to its end, show it and end the program with what became of it. With
    `stream`, its text is shown as it comes; then the job itself only where it has none."""
    try:
        with connected(url, repeats=REPEATS) as client:
            job = client.job(id)
            if stream:
                _listen(job, timeout, err=as_json)
            else:
                _follow(job, timeout)
    except KeyboardInterrupt:
        typer.echo(f"\n{_goes_on(id)}", err=True)
        raise typer.Exit(130) from None
    if as_json:
        write_json(job.data)
    elif not (stream and job.status == "succeeded" and job.data["result"]["text"]):
        write_job(job, client.url)
    if not job.final:
        leave(Code.TIMEOUT, _goes_on(id))
    raise typer.Exit(Code.DONE if job.status == "succeeded" else Code.FAILED)


def _goes_on(id: str) -> str:
    return f"The job goes on; wait for it with: agentflow jobs wait {id}"


def _follow(job: Job, timeout: float | None) -> None:
    """Until the job is final or time is up. The live stream paints, `result` decides."""
    from agentflow.client import JobFailed, JobTimeout

    with _bar(job):
        try:
            job.result(timeout)
        except (JobFailed, JobTimeout):
            return


def _listen(job: Job, timeout: float | None, *, err: bool) -> None:
    """The same with the text of the job."""
    from agentflow.cli.telling import Teller
    from agentflow.client import JobFailed, JobTimeout

    teller = Teller(job, err=err)
    teller.start()
    try:
        job.result(timeout)
    except JobTimeout:
        return
    except JobFailed:
        pass
    teller.finish()


@contextmanager
def _bar(job: Job) -> Iterator[None]:
    """A live bar on standard error while the block runs, if that is a terminal."""
    out = console(err=True)
    if not out.is_terminal:
        yield
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.fields[share]:>4}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=out,
        transient=True,
    )
    row = bar.add_task(job.status, total=None, share="", note="")
    with bar:
        painter = threading.Thread(target=_paint, args=(job, bar, row), daemon=True)
        painter.start()
        yield


def _paint(job: Job, bar: Progress, row: TaskID) -> None:
    from agentflow.client import ClientError

    try:
        for event in job.events():
            said = event.reason.replace("_", " ").replace(":", ": ")
            note = "" if said == event.status else said
            bar.update(row, description=f"{event.status:10}", note=event.message or note)
            if event.progress is not None:
                share = percent({"fraction": event.progress})
                bar.update(row, total=1.0, completed=event.progress, share=share)
            if event.event == "started":
                bar.update(row, total=None, completed=0.0, share="")
    except ClientError:
        return  # the bar stands still; the wait for the end goes on without it
