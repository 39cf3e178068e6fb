"""examples/fal is a plugin by strangers: installed where nothing else of ours is, and passing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import PROGRAM, agentflow, clean

EXAMPLE = Path(__file__).parents[2] / "examples" / "fal"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the plugin is installed in, without what it depends on."""
    site = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    words += ["--no-build-isolation", "--target", str(site), str(EXAMPLE)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    return site


def test_it_passes_the_suite(site: Path) -> None:
    """Its own tests too. Half a minute where nobody else has work for the processors."""
    said = subprocess.run(
        [PROGRAM, "plugins", "test", str(EXAMPLE)],
        capture_output=True, text=True, timeout=220, env=clean(PYTHONPATH=str(site)),
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]
    assert "The plugin is done." in said.stdout


def test_it_is_none_of_those_that_are_installed() -> None:
    said = agentflow("plugins")
    assert "fal.run" not in said.out


def test_its_tests_are_none_of_ours() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "examples"],
        cwd=EXAMPLE.parents[1], capture_output=True, text=True, timeout=120, env=clean(),
    )  # fmt: skip
    assert said.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, said.stdout[-2000:]
