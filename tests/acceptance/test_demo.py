"""The newcomer's first minute."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.cli import PATIENCE, PROGRAM, agentflow, clean

from agentflow.client import Job
from agentflow.demo.evidence import Trail
from agentflow.demo.stories import STORIES, Story
from agentflow.testing.simulator import Stats


def test_it_ends_by_itself_and_every_fault_was_seen_and_healed(tmp_path: Path) -> None:
    began = time.monotonic()
    ran = agentflow("demo", "--data", "here", cwd=tmp_path)
    assert ran.code == 0, ran.out + ran.err
    assert time.monotonic() - began < PATIENCE
    assert "not seen" not in ran.out
    assert "\x1b" not in ran.out
    assert "12 of 12 jobs ended" in ran.out
    assert "none was made twice" in ran.out
    assert "polling healed it in" in ran.out
    for story in STORIES:
        assert re.search(rf"^{story.name} +{story.ends} ", ran.out, re.M), story.name
    assert len(list((tmp_path / "here" / "pictures").glob("*.png"))) == 10
    assert (tmp_path / "here" / "demo.log").exists()
    assert "dev --simulate --data here" in ran.out
    assert ran.err == ""


def test_what_did_not_happen_is_not_claimed(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from agentflow.demo import evidence, play
from agentflow.demo.stories import Story
play.LATE = 0.5
play.STORIES = (Story("webhooks lost", evidence.lost, {"seconds": 0.2}),)
sys.exit(play.run(Path("here")))
"""
    done = subprocess.run(
        [PROGRAM.with_name("python"), "-c", script],
        capture_output=True, text=True, timeout=PATIENCE, env=clean(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"^webhooks lost +succeeded +1 +not seen", done.stdout, re.M), done.stderr


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_no_record_proves_nothing(story: Story) -> None:
    job = Job(None, {"id": "job_0", "status": "queued", "attempt": 1, "error": None})  # type: ignore[arg-type]
    assert story.check(Trail(job, [], [], Stats())) is None


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    with subprocess.Popen(
        [PROGRAM, "demo", "--data", "here"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean(), cwd=tmp_path, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        while "Replicate works on it" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130
        assert process.stderr.read() == "Stopped.\n"
