"""A bug to seed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    plugin: str
    file: str
    old: str
    new: str
    breaks: str
    look: str = ""


def of(plugin: str, *edits: tuple[str, str, str, str, str]) -> list[Mutant]:
    return [Mutant(plugin, *edit) for edit in edits]
