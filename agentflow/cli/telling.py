"""The text of a job on the screen while it is written."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from agentflow.client import Job

LATE = 5.0
"""Seconds that the last of the text may come after the result."""


class Teller:
    """Writes what the calls of a job say to standard output, or with `err` to standard error,
    until its end; what is to be said besides goes to standard error."""

    def __init__(self, job: Job, *, err: bool) -> None:
        self._job, self._err = job, err
        self._attempt = 0
        self._text = ""
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """The job is final: what of its text was not heard is shown from its result."""
        self._thread.join(LATE)
        whole = (self._job.data.get("result") or {}).get("text") or ""
        if whole.startswith(self._text):
            self._write(whole[len(self._text) :])
        elif self._job.status == "succeeded":
            note = f"Some of the text was missed. The whole: agentflow jobs show {self._job.id}"
            typer.echo(f"\n{note}", err=True)
        if self._text or whole:
            typer.echo(err=self._err)

    def _tell(self) -> None:
        from agentflow.client import ClientError

        try:
            for delta in self._job.stream():
                if self._attempt not in (0, delta.attempt):
                    typer.echo(f"\nAttempt {delta.attempt} begins anew:", err=True)
                    self._text = ""
                self._attempt = delta.attempt
                self._text += delta.text
                self._write("…" if delta.missing != 0 else delta.text)
        except ClientError:
            return  # the wait for the end goes on without it

    def _write(self, text: str) -> None:
        typer.echo(text, nl=False, err=self._err)
