"""What the suite may ask of a plugin's tasks, and what it shall come to against the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HERE = "http://simulator.invalid"
"""In a text of an input, the address at which the simulator is served."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Another input of the same task, and how its job ends.

    `error` is the kind of a failure (`content_rejected`); `result` as in `Order`.
    """

    input: Any
    status: str = "failed"
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """An input of a task that ends in success soon.

    `task` is the name without the provider's. In `input`, a `bytes` value stands for a file in
    custody: the task is given its id; `HERE` in a text stands for the simulator's address. `later`
    says that the task's function returns `Accepted`, and that the end comes by webhook or poll.
    `result` holds members the job's result must have (of lists the elements, of objects the members
    named here; a type stands for any value of it). `slow` is an input whose work lasts ten seconds
    at least, for what is canceled. `ends` are other ways the work can end. `refused` are inputs
    that the task's model does not admit.
    """

    task: str
    input: Any
    later: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)
    slow: Any = None
    ends: Sequence[Ends] = ()
    refused: Sequence[Any] = ()

    def __str__(self) -> str:
        return f"{self.task}{'-later' if self.later else ''}"


def check_end(job: Mapping[str, Any], way: Ends, how: str = "") -> None:
    """Raises `AssertionError` for a job that has ended otherwise; `how` says what was special."""
    found = job["error"]["kind"] if job["error"] else None
    case = f"{how}, {way.input}" if how else str(way.input)
    assert (job["status"], found) == (way.status, way.error), (
        f"{case} ends {job['status']} {job['error'] or ''},"
        f" the order says {way.status} {way.error or ''}"
    )
    missing = lacks(job["result"], way.result) if way.result else None
    assert missing is None, f"{case}: {missing}"


def lacks(found: Any, wanted: Any, place: str = "result") -> str | None:
    """What `found` lacks of `wanted`, as a sentence; None if it has all of it."""
    match wanted:
        case type():
            if isinstance(found, wanted) and not (wanted in (int, float) and found is True):
                return None
            return f"{place} is {found!r}, not {wanted.__name__}"
        case Mapping():
            if not isinstance(found, Mapping):
                return f"{place} is {found!r}, not an object"
            each = ((found.get(name), part, f"{place}.{name}") for name, part in wanted.items())
        case list() | tuple():
            if not isinstance(found, list) or len(found) != len(wanted):
                return f"{place} is {found!r}, not {len(wanted)} elements"
            each = ((found[i], part, f"{place}.{i}") for i, part in enumerate(wanted))
        case _:
            return None if found == wanted else f"{place} is {found!r}, not {wanted!r}"
    return next((said for one in each if (said := lacks(*one)) is not None), None)


def shape(value: Any) -> Any:
    """What two values have in common that differ in ids and counts."""
    match value:
        case Mapping():
            return {name: shape(part) for name, part in value.items()}
        case list():
            return [shape(part) for part in value]
        case int() | float() if not isinstance(value, bool):
            return 0
        case str():
            return ""
        case _:
            return value
