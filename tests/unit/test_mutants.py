"""The bugs that `make mutants` seeds can be seeded."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutation.mutants import MUTANTS, Mutant

import agentflow

PLUGINS = Path(agentflow.__file__).parents[1] / "plugins"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.plugin}: {m.breaks}")
def test_every_bug_changes_one_place_into_python(mutant: Mutant) -> None:
    folder = PLUGINS / f"agentflow-{mutant.plugin}" / f"agentflow_{mutant.plugin}"
    source = (folder / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
