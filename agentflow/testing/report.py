"""A plugin's conformance tests, run in a process of their own and told as a report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias
from xml.etree import ElementTree

from agentflow.testing import telling

State: TypeAlias = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """`said` is what a failed check asks for, or why it was skipped."""

    suite: str
    name: str
    outcome: State
    said: str = ""

    @property
    def words(self) -> str:
        """The rule that the name states, with the order it was checked for."""
        rule, _, about = self.name.removeprefix("test_").partition("[")
        return rule.replace("_", " ") + (f" ({about.rstrip(']')})" if about else "")


@dataclass(slots=True)
class Report:
    """`trouble` is why there is nothing to report: no tests, or no pytest."""

    checks: list[Check] = field(default_factory=list)
    trouble: str = ""

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.outcome == "failed"]

    @property
    def ran(self) -> bool:
        return any(check.outcome != "skipped" for check in self.checks)

    @property
    def sentence(self) -> str:
        counts = {state: self._count(state) for state in ("passed", "failed", "skipped")}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        verdict = "The plugin is not done." if self.failed else "The plugin is done."
        return f"{verdict} {said}."

    def view(self) -> dict[str, Any]:
        return {
            "done": self.ran and not self.failed,
            **{state: self._count(state) for state in ("passed", "failed", "skipped")},
            "checks": [asdict(check) for check in self.checks],
            "trouble": self.trouble,
        }

    def _count(self, state: str) -> int:
        return sum(check.outcome == state for check in self.checks)


Advance: TypeAlias = Callable[[int, int], None]
"""Told how many checks are done, of how many."""


def run_suite(path: Path, check: str | None = None, advance: Advance | None = None) -> Report:
    """Run pytest on the `tests` of a distribution, or on a file. The plugin must be installed."""
    folder = path if path.is_dir() else path.parent
    tests = path / "tests" if (path / "tests").is_dir() else path
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = os.pathsep.join(map(os.path.abspath, given))
    with tempfile.TemporaryDirectory(prefix="agentflow-report-") as scratch:
        written = Path(scratch) / "report.xml"
        words = [sys.executable, "-m", "pytest", str(tests.resolve()), f"--junitxml={written}"]
        words += ["-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
        words += ["-o", "junit_family=xunit2", "-p", telling.__name__]
        words += ["-k", check] if check else []
        said = _run(words, folder, {**os.environ, "PYTHONPATH": paths}, advance)
        checks = list(_checks(written)) if written.exists() else []
    if checks:
        return Report(checks)
    if "No module named pytest" in said:
        return Report(trouble="pytest is missing: pip install 'agentflow-core[testing]'")
    return Report(trouble=f"Nothing was checked in {path}:\n{said[-2000:]}")


def _run(words: list[str], folder: Path, env: dict[str, str], advance: Advance | None) -> str:
    """What pytest says, without the lines that tell how far it is."""
    said = []
    with subprocess.Popen(
        words, cwd=folder, env=env, text=True, encoding="utf-8", errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        for line in running.stdout:
            if (far := telling.heard(line)) is None:
                said.append(line)
            elif advance is not None:
                advance(*far)
    return "".join(said).strip()


def _checks(written: Path) -> Iterator[Check]:
    for case in ElementTree.parse(written).iter("testcase"):
        suite, name = case.get("classname", "").rpartition(".")[2], case.get("name", "")
        outcome: State = "passed"
        said = ""
        for kind, state in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            found = case.find(kind)
            if found is not None:
                outcome = "skipped" if state == "skipped" else "failed"
                said = _plain(found.get("message", "")) or (found.text or "")[:2000]
        yield Check(suite, name, outcome, said)


def _plain(message: str) -> str:
    """The sentence of an assertion, without what pytest adds to it."""
    first = re.split(r"\nassert |\n\+|\n  ?\+", message)[0]
    return first.removeprefix("AssertionError: ").strip()
