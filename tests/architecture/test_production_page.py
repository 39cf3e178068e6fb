"""The page on production, and the files it shows: what they name exists, and they fit together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from agentflow_replicate import ReplicateSettings

from agentflow import Settings
from agentflow.cli import backends
from agentflow.cli.program import program
from agentflow.settings import load_settings
from agentflow.store.database import postgres
from agentflow.store.rights import WEB, WRITER
from agentflow.web.listening import DRAIN
from agentflow.writer.writer import STOP_WITHIN

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "production"
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^(?:web|worker|writer): (agentflow .+)$", re.M)
UNIT = re.compile(r"^ExecStart=\S+/(agentflow .+)$", re.M)
ROLES = ["web", "writer", "worker"]


def texts() -> dict[str, str]:
    files = [*sorted(EXAMPLES.iterdir()), ROOT / "Procfile"]
    return {"the page": PAGE, **{file.name: file.read_text(encoding="utf-8") for file in files}}


def command_lines() -> Iterator[str]:
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", PAGE, re.S | re.M):
        yield from re.findall(r"^ *(agentflow .+)$", block, re.M)
    yield from (c for c in re.findall(r"`(agentflow [^`]+)`", PAGE) if "…" not in c)
    for text in texts().values():
        yield from ENTRY.findall(text) + UNIT.findall(text)


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_each_command_is_understood(line: str) -> None:
    """Its words are a command's, and what follows are options and arguments of it."""
    command: Any = typer.main.get_command(program)
    words = shlex.split(re.sub(r"\$\{\w+:-(\w+)\}", r"\1", line))[1:]
    name = "agentflow"
    while words and getattr(command, "commands", {}).get(words[0]) is not None:
        name, command = words[0], command.commands[words.pop(0)]
    assert name != "agentflow", line
    command.make_context(name, list(words), resilient_parsing=not words)


def test_each_variable_exists() -> None:
    known = {f"AGENTFLOW_{name.upper()}" for name in Settings.model_fields}
    known |= {f"REPLICATE_{name.upper()}" for name in ReplicateSettings.model_fields}
    for name, text in texts().items():
        said = set(re.findall(r"\b(?:AGENTFLOW|REPLICATE)_[A-Z_]*[A-Z]\b", text))
        assert said <= known, name


def environment(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (EXAMPLES / name).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("role", ROLES)
def test_the_environment_files_make_settings(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("agentflow.env", f"{role}.env").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AGENTFLOW_MODE", role)
    settings = load_settings()
    assert (settings.database(role) is None) == (role == "worker")
    assert ReplicateSettings().webhook_secret.get_secret_value(), "workers tell the address too"


def unit(role: str) -> str:
    (file,) = (f for f in EXAMPLES.glob("*.service") if f"-{role}" in f.name)
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_waits_longer_than_its_role_takes_to_stop(role: str) -> None:
    grace = float(environment("worker.env")["AGENTFLOW_GRACE"])
    takes = {"web": DRAIN, "writer": STOP_WITHIN, "worker": grace + 5.0}[role]
    found = re.search(r"^TimeoutStopSec=(\d+)$", unit(role), re.M)
    assert found is not None
    assert int(found[1]) >= takes + 10


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_reads_files_there_are_and_plays_its_role(role: str) -> None:
    read = re.findall(r"^EnvironmentFile=/etc/agentflow/(.+)$", unit(role), re.M)
    assert read == ["agentflow.env", f"{role}.env"]
    command = "serve" if role == "web" else role
    assert UNIT.findall(unit(role)) == [f"agentflow {command}"]


def test_the_procfile_has_each_role_once() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["web", "worker", "writer"]
    assert ENTRY.findall("\n".join(lines)) == [
        "agentflow serve --port ${PORT:-8700}", "agentflow worker", "agentflow writer",
    ]  # fmt: skip


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    credentials = postgres("postgres://a@b/c", Settings(), "web")["credentials"]
    sessions = credentials["server_settings"]
    assert f"1 to {credentials['maxsize']}" in PAGE
    assert (
        f"locks {spoken(sessions['lock_timeout'])},"
        f" statements {spoken(sessions['statement_timeout'])}, forgotten transactions"
        f" {spoken(sessions['idle_in_transaction_session_timeout'])}"
    ) in " ".join(PAGE.split())
    assert f"Version {backends.POSTGRES} or later" in PAGE
    assert f"Redis {'.'.join(map(str, backends.REDIS))} or later" in PAGE
    assert f"| {DRAIN} s, and what is being committed |" in PAGE
    assert {f"`{WEB}`", f"`{WRITER}`"} <= set(re.findall(r"`agentflow_\w+`", PAGE))


def spoken(setting: str) -> str:
    return f"{setting.removesuffix('s')} s"


def test_the_checks_can_fail() -> None:
    with pytest.raises(Exception, match="No such option: --rolls"):
        test_each_command_is_understood("agentflow migrate --rolls")
    with pytest.raises(AssertionError):
        test_each_command_is_understood("agentflow fly")
