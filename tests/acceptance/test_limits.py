"""A limit holds for all workers, and a killed one takes nothing with it: the short form of
`python -m tests.benchmarks.limited`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.benchmarks.limited", "--jobs=200", "--kills=1", "--seed=7"]


@pytest.mark.timeout(400)
def test_three_workers_keep_a_limit_and_a_killed_one_keeps_no_permit(servers: None) -> None:
    done = subprocess.run(PROGRAM, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
