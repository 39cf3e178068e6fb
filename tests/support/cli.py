"""The program `agentflow` as processes of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).parent / "agentflow"

PATIENCE = 60.0
"""Seconds for what takes one or two where nobody else has work for the processors."""


def clean(**more: str) -> dict[str, str]:
    """This environment without settings of agentflow and its plugins, and with `more`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AGENTFLOW_", "OPENAI_", "REPLICATE_", "SENDGRID_"))
    }
    return {**kept, "PYTHONWARNINGS": "default", **more}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def agentflow(
    *args: str, env: Mapping[str, str] | None = None, input: str | None = None, cwd: Any = None
) -> Ran:
    done = subprocess.run(
        [PROGRAM, *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=clean(**(env or {})),
        input=input,
        cwd=cwd,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


class Dev:
    """A running `agentflow dev`; `log` is its standard error so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log
        self.url = self._ready()

    def _ready(self) -> str:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = re.search(r"^agentflow \S+  (http://\S+)", self.log, re.M)
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"dev did not start: {self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def __call__(self, *args: str, input: str | None = None, **env: str) -> Ran:
        """Run a command against it."""
        return agentflow(*args, env={"AGENTFLOW_URL": self.url, **env}, input=input)

    def submit(self, *args: str, **simulate: Any) -> Ran:
        order = {"model": "acme/painter", "input": {"prompt": "a fox", "simulate": simulate}}
        return self("submit", "replicate.predict", json.dumps(order), *args)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)


@contextmanager
def dev(folder: Path, *args: str, **env: str) -> Iterator[Dev]:
    """On a free port, with its data in `folder / "data"`."""
    folder.mkdir(exist_ok=True)
    log = folder / "dev.log"
    command = [PROGRAM, "dev", "--port", "0", "--data", str(folder / "data"), *args]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stderr=file, env=clean(**env), cwd=folder) as process,
    ):
        try:
            yield Dev(process, log)
        finally:
            if process.poll() is None:
                process.kill()
