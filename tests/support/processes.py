"""Processes with all they started: stopped, killed, and none of them left behind.

`watched` tells a watcher, which is this file run as a program, what there is. Its standard input
ends with the process that fed it, however that ended; then it kills and deletes what is left.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

PATIENCE = 60.0  # seconds


def freeze(pid: int) -> list[int]:
    """Stop the process and everything it started. Returns all of them, itself first."""
    frozen: list[int] = []
    while len(members := family(pid)) > len(frozen):  # more were born before it stopped
        send(members, signal.SIGSTOP)
        frozen = members
    return frozen


def thaw(pid: int) -> None:
    send(reversed(family(pid)), signal.SIGCONT)


def kill(pid: int) -> None:
    """SIGKILL the process and everything it started; returns when they are gone."""
    members = set(freeze(pid))
    send(members, signal.SIGKILL)
    until(lambda: members.isdisjoint(running()), "the killed processes to end")


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def until(true: Callable[[], bool], what: str) -> None:
    """Raises `TimeoutError`."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.01)


def family(pid: int) -> list[int]:
    """The process and everything it started, parents before their children."""
    parents = running()
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found


def running() -> dict[int, int]:
    """Each process that has not ended, and its parent."""
    return {
        int(pid): int(parent)
        for pid, parent, state in _listed()
        if not state.startswith(("Z", "X"))
    }


def _listed() -> Iterable[tuple[str, str, str]]:
    """The process, its parent, its state."""
    if sys.platform == "linux":  # where `ps` may not be installed
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it ended meanwhile
                state, parent = file.read_text(errors="replace").rpartition(")")[2].split()[:2]
                yield file.parent.name, parent, state
    else:
        command = ["ps", "-A", "-o", "pid=,ppid=,state="]
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            pid, parent, state = line.split()
            yield pid, parent, state


def watched(folder: Path, process: int | None) -> None:
    """End `process`, if there is one, and delete `folder` when this process has ended."""
    _tell(f"{folder}\t{process or ''}")


def unwatched(folder: Path) -> None:
    _tell(f"{folder}")


def _tell(line: str) -> None:
    stdin = _watcher().stdin
    assert stdin is not None
    stdin.write(f"{line}\n")
    stdin.flush()


@cache
def _watcher() -> subprocess.Popen[str]:
    watcher = subprocess.Popen(
        [sys.executable, "-I", __file__],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests alone
    )
    atexit.register(watcher.communicate)
    return watcher


def watch(lines: Iterable[str]) -> None:
    left: dict[str, str] = {}
    for line in lines:
        folder, *process = line.rstrip("\n").split("\t")
        if process:
            left[folder] = process[0]
        else:
            del left[folder]
    for folder, pid in left.items():
        if pid:
            kill(int(pid))
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.stdin)
