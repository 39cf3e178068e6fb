"""Waiting for a job: a bar at a terminal, silence elsewhere, and the exit code at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from agentflow.cli.leaving import Code, leave
from agentflow.cli.showing import console, percent, summary, write_fields, write_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from agentflow.client import Client, Job


def wait(client: Client, job: Job, timeout: float | None, *, as_json: bool) -> None:
    """Follow the job to its end, show it and end the program with what became of it."""
    try:
        _follow(job, timeout)
    except KeyboardInterrupt:
        typer.echo(f"\n{_goes_on(job)}", err=True)
        raise typer.Exit(130) from None
    if as_json:
        write_json(job.data)
    else:
        write_job(job, client.url)
    if not job.final:
        leave(Code.TIMEOUT, _goes_on(job))
    raise typer.Exit(Code.DONE if job.status == "succeeded" else Code.FAILED)


def _goes_on(job: Job) -> str:
    return f"The job goes on; wait for it with: agentflow jobs wait {job.id}"


def _follow(job: Job, timeout: float | None) -> None:
    """Until the job is final or time is up. The live stream paints, `result` decides."""
    from agentflow.client import JobFailed, JobTimeout

    with _bar(job):
        try:
            job.result(timeout)
        except (JobFailed, JobTimeout):
            return


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
        time.sleep(0)  # the bar stands still; the wait for the end goes on without it


def write_job(job: Job, url: str) -> None:
    """Everything a person wants to know of a job."""
    data = job.data
    result = data["result"] or {}
    fields = {
        "job": data["id"],
        "task": data["task"],
        "status": data["status"],
        "why": summary(data),
        "progress": "" if job.final else percent(data["progress"]),
        "attempt": f"{data['attempt']} of {data['max_attempts']}",
        "entity": data["entity"],
        "tags": " ".join(data["tags"]),
        "metadata": data["metadata"],
        "external id": data["external_id"],
        "retry of": data["retry_of"],
        "created": data["created_at"],
        "started": data["started_at"],
        "finished": data["finished_at"],
        "next look": data["wake_at"],
        "deadline": None if job.final else data["deadline"],
        "error": (data["error"] or {}).get("message"),
        "text": result.get("text"),
        "output": None if result.get("text") else result.get("output"),
        "usage": result.get("usage"),
        "cost": " ".join([data["cost"]["amount"], data["cost"]["currency"]])
        if data["cost"]
        else None,
    }
    for number, file in enumerate(result.get("artifacts", []), 1):
        place = f"{url}/v1/artifacts/{file['id']}" if file["status"] == "stored" else file["note"]
        fields[f"file {number}"] = f"{file['name']}  {file['status']}  {place}"
    write_fields(fields)
