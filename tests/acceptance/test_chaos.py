"""A whole agentflow of many processes under every kind of fault: the short form of `make chaos`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.chaos"]
SHORT = {
    "jobs": 150, "faults": 18, "rate": 6, "scale": 0.2, "checks": 2, "patience": 150, "seed": 11,
}  # fmt: skip


@pytest.mark.timeout(480)
def test_no_fault_of_a_process_a_server_a_link_or_a_clock_breaks_a_promise(servers: None) -> None:
    options = [f"--{name}={value}" for name, value in SHORT.items()]
    done = subprocess.run([*PROGRAM, *options], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
