"""`agentflow submit`"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from agentflow.cli.leaving import Code, connected, leave
from agentflow.cli.options import AsJson, Stream, Url


def submit(
    task: Annotated[str, typer.Argument(help="The task, as in replicate.predict.")],
    input: Annotated[
        str | None,
        typer.Argument(help="Its input: JSON, @file with JSON, or - for standard input."),
    ] = None,
    entity: Annotated[str | None, typer.Option(help="The caller's own thing, type:id.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object kept with the job.")] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher goes first.")] = 0,
    delay: Annotated[float | None, typer.Option(min=0, help="Seconds before it starts.")] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds from its start to its end at the latest.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, max=100)] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key gives the same job.")
    ] = None,
    callback_url: Annotated[
        str | None, typer.Option(help="Told by a signed POST when the job has ended.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end; the exit code tells it.")] = True,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Wait at most so many seconds.")
    ] = None,
    stream: Stream = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job and wait for its end."""
    from agentflow.cli.following import wait as follow
    from agentflow.cli.showing import write_json

    given = read_json(input, "The input")
    more = read_json(metadata, "The metadata") or {}
    with connected(url) as client:
        job = client.submit(
            task,
            given,
            idempotency_key=key,
            entity=entity,
            priority=priority,
            delay=delay,
            deadline=deadline,
            max_attempts=max_attempts,
            tags=tag or [],
            metadata=more,
            callback_url=callback_url,
        )
    if wait:
        typer.echo(f"Submitted {job.id}", err=True)
        follow(url, job.id, timeout, as_json=as_json, stream=stream)
    elif as_json:
        write_json(job.data)
    else:
        typer.echo(job.id)


def read_json(given: str | None, what: str) -> Any:
    """A JSON argument, `@file` or `-`. Ends the program if it is none."""
    if given is None:
        return None
    try:
        if given == "-":
            text = sys.stdin.read()
        elif given.startswith("@"):
            text = Path(given[1:]).read_text(encoding="utf-8")
        else:
            text = given
        return json.loads(text)
    except OSError as error:
        leave(Code.USAGE, f"{what} cannot be read: {error}")
    except ValueError as error:
        leave(Code.USAGE, f"{what} is no JSON: {error}")
