"""JSON pointers (RFC 6901): where in a document something is. `*` stands for every element."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator

_POINTER = re.compile(r"(/([^/~]|~[01])*)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


def checked(pointer: str) -> str:
    """Raises `ValueError`."""
    if not _POINTER.fullmatch(pointer):
        raise ValueError("is no JSON pointer: write /data/id")
    return pointer


Pointer = Annotated[str, AfterValidator(checked)]


def at(document: Any, pointer: str) -> Any:
    """The first thing there; None if there is nothing."""
    return next(every(document, pointer), None)


def every(document: Any, pointer: str) -> Iterator[Any]:
    """All things there, in order: several only where the pointer has a `*`."""
    found = [document]
    for step in _steps(pointer):
        found = [inner for each in found for inner in _into(each, step)]
    yield from found


def put(document: dict[str, Any], pointer: str, value: Any) -> None:
    """Set a member of an object, or one of an object within; those on the way are made. A name
    without a slash is a member."""
    *way, last = _steps(pointer) if pointer.startswith("/") else [pointer]
    for step in way:
        inner = document.get(step)
        if not isinstance(inner, dict):
            inner = document[step] = {}
        document = inner
    document[last] = value


def _steps(pointer: str) -> list[str]:
    return [s.replace("~1", "/").replace("~0", "~") for s in pointer.split("/")[1:]]


def _into(value: Any, step: str) -> list[Any]:
    match value:
        case dict() if step in value:
            return [value[step]]
        case dict() if step == "*":
            return list(value.values())
        case list() if step == "*":
            return list(value)
        case list() if _INDEX.fullmatch(step) and int(step) < len(value):
            return [value[int(step)]]
        case _:
            return []
