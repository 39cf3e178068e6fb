"""`make mutants`: seed each bug in a copy of its plugin, run the plugin's conformance tests on it,
and say which bugs they did not see. ARGS: words that the plugin or the description must hold."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS

PLUGINS = Path(__file__).parents[2] / "plugins"
ENOUGH = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("words", nargs="*", help="only bugs whose plugin or text holds one of them")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--quick", action="store_true", help="only the checks tried first")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(w in _named(m) for w in options.words)]
    found: list[dict[str, str | None]] = []
    for number, mutant in enumerate(chosen, 1):
        began = time.monotonic()
        by = killer(mutant, quick=options.quick)
        found.append({"bug": _named(mutant), "file": mutant.file, "seen by": by})
        spent = time.monotonic() - began
        print(
            f"{number:3d}/{len(chosen)}  {by or 'SURVIVES':60s} {_named(mutant)}  ({spent:.0f} s)"
        )
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    seen = sum(1 for each in found if each["seen by"])
    print(f"{seen} of {len(found)} bugs seen: {100 * seen / max(len(found), 1):.0f} %")
    sys.exit(seen < ENOUGH * len(found))


def killer(mutant: Mutant, *, quick: bool = False) -> str | None:
    """The check that sees the bug; None if none does. `quick` leaves it at those tried first."""
    with tempfile.TemporaryDirectory(prefix="agentflow-mutant-") as folder:
        copy = Path(folder) / "plugin"
        shutil.copytree(PLUGINS / f"agentflow-{mutant.plugin}", copy)
        file = copy / f"agentflow_{mutant.plugin}" / mutant.file
        source = file.read_text(encoding="utf-8")
        assert source.count(mutant.old) == 1, f"{mutant.file}: not once: {mutant.old!r}"
        changed = source.replace(mutant.old, mutant.new)
        compile(changed, str(file), "exec")
        file.write_text(changed, encoding="utf-8")
        return _failed(copy, mutant.look) or (None if quick else _failed(copy, ""))


def _failed(copy: Path, look: str) -> str | None:
    """The first check that fails."""
    words = ["-m", "pytest", "tests/test_conformance.py", "-x", "-q", "--tb=no", "-rfE"]
    words += ["-p", "no:cacheprovider", *(["-k", look] if look else [])]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert done.returncode == 1 or lines, f"pytest did not run: {done.stdout}{done.stderr}"
    return lines[0].split("::")[-1].split(" - ")[0]


def _named(mutant: Mutant) -> str:
    return f"{mutant.plugin}: {mutant.breaks}"


if __name__ == "__main__":
    main()
