"""How commands end: every expected trouble is a sentence and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from agentflow.client import Client


class Code(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    """The job did not succeed, the thing is not there, or it is not in a state for this."""
    USAGE = 2
    """Wrong options, input or settings; a data directory or port in use."""
    UNREACHABLE = 3
    TIMEOUT = 4


def leave(code: Code, message: str) -> NoReturn:
    """End the program with a line on standard error."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


@contextmanager
def connected(url: str | None, *, repeats: int = 1) -> Iterator[Client]:
    """A client of the server at `url` or where the settings say; its errors end the program."""
    from agentflow.client import ApiError, Client, ServerUnreachable

    address, key = _address(url)
    try:
        client = Client(address, key, repeats=repeats)
    except ValueError as error:
        leave(Code.USAGE, str(error))
    try:
        with client:
            yield client
    except ServerUnreachable as error:  # a 503 is one too
        leave(Code.UNREACHABLE, f"{error}\nIs a server running? agentflow dev")
    except ApiError as error:
        lines = [f"{fault['loc']}: {fault['msg']}" for fault in error.errors]
        said = "\n  ".join([error.title, *(lines or [error.detail])])
        leave(Code.USAGE if error.status in (400, 413, 422) else Code.FAILED, said)


def _address(url: str | None) -> tuple[str, str | None]:
    """The server's URL and the key to send. With a URL the settings need not be loaded, which
    takes longer than all the rest of a command."""
    if url is not None:
        return url, os.environ.get("AGENTFLOW_API_KEY") or None
    with settings_checked():
        from agentflow.settings import load_settings

        settings = load_settings(require_keys=True)  # which address the server has is its affair
    return settings.url, settings.api_key.get_secret_value() if settings.api_key else None


def leave_behind() -> None:
    """End the process where functions of plugins go on though they were canceled: their loop waits
    for them for ever. Everything of ours is closed by now."""
    from agentflow.worker.running import left_behind

    if left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(Code.DONE)


@contextmanager
def settings_checked() -> Iterator[None]:
    """What is wrong with settings or use ends the program with code 2."""
    from agentflow.errors import SettingsError, UsageError

    try:
        yield
    except (SettingsError, UsageError) as error:
        leave(Code.USAGE, str(error))
