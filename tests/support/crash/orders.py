"""What the clients of a storm ask for."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agentflow.types import Json


@dataclass(frozen=True)
class Order:
    """A job as it is submitted; `more` are further fields of the request."""

    task: str
    input: Json
    more: Mapping[str, Any] = field(default_factory=dict)


Orders: TypeAlias = Callable[[int, random.Random], Order]
"""The order of this number."""


def prediction(number: int, dice: random.Random) -> Order:
    """Replicate's; one in four is told of by no webhook at all, one in twenty fails."""
    seconds = dice.choice([0.0, 0.1, 0.3, 1.0, 2.0])
    simulate: dict[str, Any] = {"seconds": seconds}
    if number % 4 == 3:
        simulate["faults"] = {"drop": True}
    if number % 20 == 10:
        simulate |= {"outcome": "failed", "error": "no such thing"}
    input = {"model": "a/b", "input": {"n": number, "simulate": simulate}}
    return Order("replicate.predict", input, {"entity": f"shot:{number}"})
