"""The server programs the tests need: where they are, and how they get here."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ELSEWHERE = (  # where packages put PostgreSQL, often outside of PATH
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks it whether a service may be started


class ServersMissing(Exception):
    """A server is not installed; the message says which and how to get it."""


@dataclass(frozen=True)
class Program:
    """`names` are alternatives; `companions` have to lie in the same folder."""

    label: str
    names: tuple[str, ...]
    oldest: tuple[int, int]
    companions: tuple[str, ...] = ()

    def path(self) -> Path | None:
        """The first that will do: in PATH, then elsewhere, newest first."""
        return next(filter(self._will_do, self._candidates()), None)

    def _candidates(self) -> Iterator[Path]:
        for name in self.names:
            if found := shutil.which(name):
                yield Path(found)
                yield Path(found).resolve()  # a link from PATH has no companions beside it
            there = [
                path for folder in ELSEWHERE for path in Path("/").glob(f"{folder[1:]}/{name}")
            ]
            yield from sorted(there, key=version, reverse=True)

    def _will_do(self, path: Path) -> bool:
        complete = all(path.with_name(name).exists() for name in self.companions)
        return complete and version(path) >= self.oldest


POSTGRES = Program("PostgreSQL 13 or later", ("postgres",), (13, 0), ("initdb", "psql"))
REDIS = Program("Redis 7.0 or later", ("redis-server", "valkey-server"), (7, 0))


def version(path: Path) -> tuple[int, int]:
    """The first number it says with `--version`; (0, 0) if it says none."""
    found = re.search(r"(\d+)(?:\.(\d+))?", run([path, "--version"]).stdout)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def run(command: list[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )


def missing() -> str | None:
    """What is not installed and how to get it, in words; None when nothing is missing."""
    lacking = [program.label for program in (POSTGRES, REDIS) if program.path() is None]
    if not lacking:
        return None
    return (
        f"These tests need {' and '.join(lacking)}, not found here. Debian and Ubuntu: sudo apt-get"
        " install postgresql redis-server. macOS: brew install postgresql@17 redis."
        " AGENTFLOW_TEST_SERVERS=none skips these tests."
    )


def ensure_servers() -> None:
    """Install what is missing where that is ours to do: as root, with apt-get.

    Raises `ServersMissing`.
    """
    said = missing()
    if said and os.geteuid() == 0 and shutil.which("apt-get"):
        with _one_at_a_time():
            outcome = _install() if missing() else ""
        said = missing() and f"{missing()} {outcome}"
    if said:
        raise ServersMissing(said)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Among the processes that run the tests together."""
    with (Path(tempfile.gettempdir()) / "agentflow-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _install() -> str:
    """What became of it, in words. Tried once: a second try would find the same."""
    print(
        "Installing PostgreSQL and Redis for the tests (once, about a minute)…",
        file=sys.__stderr__,
        flush=True,
    )
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt: list[str | Path] = ["apt-get", "-o", "DPkg::Lock::Timeout=300"]
    wanted = ("postgresql", "redis-server")
    with _no_services():
        run([*apt, "update"], env=env)  # a repository may fail that does not matter
        done = run([*apt, "install", "-y", "--no-install-recommends", *wanted], env=env)
    return f"apt-get ended with {done.returncode}: {done.stderr.strip()[-1000:]}"


@contextmanager
def _no_services() -> Iterator[None]:
    """Keep the packages from starting servers of their own on the customary ports."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
