"""A plugin from nothing: `agentflow new-plugin`, `agentflow plugins test`, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import agentflow

import agentflow as core
from agentflow.testing.report import Check, Report, run_suite

ROOT = Path(core.__file__).parents[1]


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A plugin as it was written."""
    assert agentflow("new-plugin", "acme_two", cwd=tmp_path).code == 0
    return tmp_path / "agentflow-acme-two"


def installed(plugin: Path) -> dict[str, str]:
    """The environment in which it is installed, in a folder of its own."""
    site = plugin.parent / "site"
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    words += ["--no-build-isolation", "--upgrade", "--target", str(site), str(plugin)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    return {"PYTHONPATH": str(site)}


def test_what_is_written_is_clean_and_typed(acme: Path) -> None:
    for words in (["ruff", "check"], ["ruff", "format", "--check"]):
        said = subprocess.run([sys.executable, "-m", *words, "."], cwd=acme, capture_output=True)
        assert said.returncode == 0, said.stdout.decode()
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "agentflow_acme_two"],
        cwd=acme, capture_output=True, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    assert said.returncode == 0, said.stdout.decode()


def test_nothing_is_written_over(acme: Path) -> None:
    before = {file: file.read_bytes() for file in acme.rglob("*") if file.is_file()}
    again = agentflow("new-plugin", "acme_two", cwd=acme.parent)
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    assert before == {file: file.read_bytes() for file in acme.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["Acme", "7up", "a-b", "agentflow", "a" * 41, "../x", "", "x_"])
def test_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    said = agentflow("new-plugin", name, cwd=tmp_path)
    assert said.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_that_breaks_a_rule_is_told_which(acme: Path) -> None:
    provider = acme / "agentflow_acme_two" / "provider.py"
    text = provider.read_text(encoding="utf-8").replace('case {"status": "stopped"}', "case []")
    text = text.replace('extra="forbid"', "")
    text = text.replace(
        "fetch(call: Call, external_id", "fetch(call: Call, inputs: Run, external_id"
    )
    provider.write_text(text, encoding="utf-8")
    words = ["plugins", "test", str(acme), "-k", "misspelled or says_who or take_what"]
    said = agentflow(*words, "--json", env=installed(acme))
    assert said.code == 1, said.err
    found = {check["name"]: check for check in said.json["checks"]}
    assert (said.json["done"], said.json["passed"], said.json["failed"]) == (False, 1, 2)
    failed = "\n".join(c["said"] for c in found.values() if c["outcome"] == "failed")
    assert "say extra='forbid' in the model_config" in failed
    assert "'external_id': a function is given call, external_id" in failed
    shown = agentflow(*words, env=installed(acme))
    assert "a misspelled input is refused" in shown.out
    assert "The plugin is not done. 1 passed, 2 failed." in shown.out


def test_a_webhook_that_says_nothing_before_the_answer_is_fetched_with_it(acme: Path) -> None:
    provider = acme / "agentflow_acme_two" / "provider.py"
    text = provider.read_text(encoding="utf-8")
    thin = text.replace("[Fact(fact(job), external_id=id)]", "[Fact(Changed())]")
    thin = thin.replace("    Canceled,\n", "    Canceled,\n    Changed,\n", 1)
    provider.write_text(thin, encoding="utf-8")
    words = ["plugins", "test", str(acme), "-k", "before_the_answer", "--json"]
    said = agentflow(*words, env=installed(acme))
    assert (thin.count("Changed"), said.json["passed"], said.json["failed"]) == (2, 1, 0), said.out


def test_where_nothing_is_checked_nothing_is_done(tmp_path: Path) -> None:
    assert agentflow("plugins", "test", str(tmp_path / "nowhere")).code == 2
    said = agentflow("plugins", "test", str(tmp_path), "--json")
    assert said.code == 2
    assert said.json["done"] is False


def test_a_suite_of_skips_is_not_done() -> None:
    assert not Report([Check("TestAcme", "test_x", "skipped", "no order is late")]).ran


def test_ours_can_be_judged_where_they_lie() -> None:
    report = run_suite(ROOT / "plugins" / "agentflow-replicate", "says_who or has_an_order")
    assert [check.outcome for check in report.checks] == ["passed", "passed"], report


def test_a_run_says_how_far_it_is() -> None:
    far: list[tuple[int, int]] = []
    words = ROOT / "plugins" / "agentflow-replicate", "says_who or has_an_order"
    assert run_suite(*words, lambda done, of: far.append((done, of))).ran
    assert far == [(0, 2), (1, 2), (2, 2)]


def test_without_pytest_the_rest_of_the_kit_loads() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from agentflow.testing import Ends, Order, Simulator, app\n"
        "import agentflow.testing.conformance, agentflow.testing.report"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
