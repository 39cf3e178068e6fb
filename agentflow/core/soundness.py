"""Whether a fact a plugin gave can be stored and read back: what cannot must not reach the writer,
where it would stop its neighbours."""

from __future__ import annotations

from typing import Any

from agentflow.core.cleaning import written
from agentflow.core.events import load_event, name_of
from agentflow.core.providers import Outcome

LONGEST_ID = 255


def sound(fact: Outcome) -> Outcome:
    """The fact as it would be read back. Raises `ValueError` with what is wrong."""
    name = name_of(fact)
    if not is_id(getattr(fact, "external_id", None), needed=name == "accepted"):
        raise ValueError(f"the external id of {name} is no short text")
    try:
        event = load_event(name, written(fact))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} does not fit: {error}"[:500]) from None
    assert isinstance(event, Outcome), "it was one before"
    return event


def is_id(value: Any, *, needed: bool = False) -> bool:
    """Whether an id can be stored: a text of 1 to 255 characters, or None."""
    if value is None:
        return not needed
    return isinstance(value, str) and 1 <= len(value) <= LONGEST_ID
