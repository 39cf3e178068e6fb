"""`docs/lifecycle.md` says what the machine does, all of it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from agentflow.core import machine, silence, steps, transition
from agentflow.core.events import EVENTS
from agentflow.core.job import Phase, Status
from agentflow.core.table import SITUATIONS, Table, outcomes, page, sentences

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"

DECIDING = {
    "accepted",
    "again",
    "applied",
    "end_canceling",
    "finish",
    "ignored",
    "move",
    "quiet",
    "succeed",
}


@pytest.fixture(scope="module")
def table() -> Table:
    return outcomes()


def test_the_page_is_the_one_the_code_prints(table: Table) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(table), (
        "python -m agentflow.core.table > docs/lifecycle.md"
    )


def test_every_event_has_an_outcome_in_every_status(table: Table) -> None:
    assert {status for status, _ in SITUATIONS} == set(Status)
    assert {phase for _, phase in SITUATIONS} == {None, *Phase}
    for situation, by_event in table.items():
        assert [name for name in EVENTS if not by_event[name]] == [], situation


def test_every_status_and_phase_has_its_sentence() -> None:
    for enum in (Status, Phase):
        said = sentences(enum)
        assert said.keys() == {member.value for member in enum}
        assert all(text.endswith(".") for text in said.values())


def test_every_reason_in_the_code_is_in_the_table(table: Table) -> None:
    """So the jobs and events it is made from lack nothing that decisions depend on."""
    shown = {o.reason for by_event in table.values() for found in by_event.values() for o in found}
    written = {
        word
        for module in (machine, silence, steps, transition)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in DECIDING
        for argument in node.args
        for word in strings(argument)
    }
    assert written >= {"started", "found", "polled", "cancel_unconfirmed"}
    assert sorted(written - shown) == []


def strings(node: ast.expr) -> list[str]:
    """The words an argument may be; those with an error's kind are shown as KIND."""
    match node:
        case ast.Constant(value=str(word)) if ":" not in word:
            return [word]
        case ast.IfExp(body=body, orelse=orelse):
            return [*strings(body), *strings(orelse)]
        case ast.BoolOp(values=values):
            return [word for value in values for word in strings(value)]
        case _:
            return []
