"""The public names: a short list, each where it says, none paid for before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import agentflow

ROOT = Path(agentflow.__file__).parents[1]
HEAVY = {
    "aiosqlite", "httpx", "httpx2", "openai", "pydantic", "replicate", "rich", "sse_starlette",
    "starlette", "structlog", "taskiq", "tortoise", "typer", "uvicorn", "asyncio",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """The top-level modules, and ours in full, that a fresh interpreter has after `code`."""
    told = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=100, check=True
    )
    names = json.loads(done.stdout)
    return {n if n.startswith("agentflow") else n.partition(".")[0] for n in names}


def resolved() -> dict[str, Any]:
    return {name: getattr(agentflow, name) for name in agentflow.__all__}


def test_the_list_is_what_resolves() -> None:
    assert dir(agentflow) == agentflow.__all__ == sorted(set(agentflow.__all__))
    assert all(value is not None for value in resolved().values())
    scope: dict[str, Any] = {}
    exec("from agentflow import *", scope)
    assert set(scope) - {"__builtins__"} == set(agentflow.__all__)


def test_every_name_is_what_its_module_calls_so() -> None:
    for name, module in agentflow._PLACES.items():
        value = getattr(import_module(module), name)
        assert getattr(agentflow, name) is value
        assert getattr(value, "__name__", name) == name


def test_type_checkers_see_the_same_list() -> None:
    text = Path(agentflow.__file__).read_text()
    _, _, block = text.partition("if TYPE_CHECKING:\n")
    block = block.partition("\n\n\n")[0]
    told = {
        line.rsplit(" as ", 1)[1]: line.split()[1] for line in block.splitlines() if " as " in line
    }
    assert told == agentflow._PLACES


def test_what_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        agentflow.no_such_thing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from agentflow import no_such_thing")


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert agentflow.__version__ == project["version"]


def test_importing_agentflow_loads_nothing_else() -> None:
    found = loaded_by("import agentflow")
    assert not found & HEAVY
    assert {n for n in found if n.startswith("agentflow")} <= {"agentflow", "agentflow.types"}


@pytest.mark.parametrize(
    "name", ["Provider", "Succeeded", "Policy", "Result", "StandardWebhooks", "hookimpl", "JobSpec"]
)
def test_what_a_plugin_writes_loads_no_server_and_no_database(name: str) -> None:
    found = loaded_by(f"from agentflow import {name}")
    assert not found & {"tortoise", "taskiq", "starlette", "uvicorn", "httpx", "aiosqlite"}


def test_importing_any_module_starts_nothing(tmp_path: Path) -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "agentflow").rglob("*.py"))
        if path.stem not in {"__init__", "__main__"} and not path.stem[0].isdigit()
    ]
    assert "agentflow.web.server" in names
    code = f"""
import os, threading
os.chdir({str(tmp_path)!r})
from importlib import import_module
for name in {names!r}: import_module(name)
assert threading.active_count() == 1, threading.enumerate()
assert os.listdir() == [], os.listdir()
"""
    loaded_by(code)
