"""Checks of how the plugin is found and loaded: by its entry point, cheaply, by the public door."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow.plugins.discovery import GROUP, discover
from agentflow.testing.conformance.fresh import in_fresh_process
from agentflow.testing.conformance.subject import Subject
from agentflow.testing.simulated import environment
from agentflow.worker.call import Call

_LIGHT = frozenset({"agentflow-core", "httpx", "pydantic", "pydantic-settings"})
"""What agentflow itself has loaded by then, and hands to plugins."""

_SUBMITS = frozenset({"AgentFlow", "AsyncClient", "Client", "JobSpec"})


class Loading(Subject):
    def test_it_is_found_by_its_entry_point(self) -> None:
        """`[project.entry-points.agentflow]` names the module with the hook."""
        name = self.provider.name
        with environment(self.make().env()):
            plugins = discover()
        found = [p for p in plugins if any(one.name == name for one in p.providers)]
        broken = [f"{p.name}: {p.problem}" for p in plugins if p.problem]
        assert found, f"no installed plugin gives {name}; pip install -e it. Broken: {broken}"

    def test_loading_it_loads_no_sdk(self) -> None:
        """A server that only takes webhooks must not pay for it: import the SDK where it is used,
        in the functions."""
        answer = in_fresh_process(self.provider, "load", {})
        heavy = sorted(set(answer["loaded"]) & self._dependencies())
        assert not heavy, f"importing the plugin imports {', '.join(heavy)}"

    def test_loading_it_starts_nothing(self) -> None:
        """No thread, no connection: agentflow's parts start what is to run."""
        with environment(self.make().env()):
            answer = in_fresh_process(self.provider, "load", {})
        assert self.provider.name in answer["providers"], "the hook gives another provider"
        assert answer["threads"] == 1, "importing the plugin starts threads"

    def test_it_comes_in_by_the_public_door(self) -> None:
        """Only names of `agentflow` itself are promised to stay; `agentflow.testing` is for the
        simulator."""
        for file, node in self._imports():
            if node.module == "agentflow":
                private = [n.name for n in node.names if n.name not in agentflow.__all__]
                assert not private, f"{file}: agentflow has no public {', '.join(private)}"
            elif str(node.module).startswith("agentflow."):
                raise AssertionError(f"{file}:{node.lineno}: {node.module} is not public")

    def test_it_has_no_way_to_submit(self) -> None:
        """A worker makes one call; what comes next is a handler's business."""
        for file, node in self._imports():
            ours = str(node.module).partition(".")[0] == "agentflow"
            taken = [n.name for n in node.names if ours and n.name in _SUBMITS]
            assert not taken, f"{file}:{node.lineno}: a plugin has no use for {', '.join(taken)}"
        ways = [name for name in dir(Call) if re.search("submit|adopt|job$|app", name)]
        assert not ways, f"a Call can {ways}"

    def _dependencies(self) -> set[str]:
        """The top-level modules of what the distribution asks for."""
        package, named = self._package(), packages_distributions()
        points = entry_points(group=GROUP)
        homes = [p.dist for p in points if p.dist and p.module.partition(".")[0] == package]
        asked = {_bare(line) for home in homes for line in home.requires or ()} - _LIGHT
        return {module for module, names in named.items() if asked & set(map(_bare, names))}

    def _package(self) -> str:
        task = next(iter(self.provider.tasks.values()))
        return str(task.function.__module__.partition(".")[0])

    def _imports(self) -> Iterator[tuple[str, ast.ImportFrom]]:
        """The `from … import …` of the plugin's modules, without its simulator and its tests."""
        module: Any = sys.modules[self._package()]
        try:
            top = Path(inspect.getfile(module))
        except TypeError:
            pytest.skip("the plugin has no source to read")
        for file in top.parent.rglob("*.py") if top.name == "__init__.py" else [top]:
            if {"simulator", "simulator.py", "tests"} & set(file.relative_to(top.parent).parts):
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield file.name, node
                if isinstance(node, ast.Import):
                    for name in node.names:
                        yield file.name, ast.ImportFrom(name.name, [], 0, lineno=node.lineno)


def _bare(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    return found[0].lower().replace("_", "-") if found else ""
