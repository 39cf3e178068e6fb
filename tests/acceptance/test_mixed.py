"""Every provider at once under their faults and kill -9: the short form of `make mixed`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = {"mode": "embedded", "jobs": 60, "kills": 4, "rate": 6, "seed": 3, "patience": 120}


@pytest.mark.timeout(240)
def test_jobs_of_all_providers_end_right_under_all_faults() -> None:
    program = [sys.executable, "-m", "tests.mixed"]
    options = [f"--{name}={value}" for name, value in SHORT.items()]
    done = subprocess.run([*program, *options], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
