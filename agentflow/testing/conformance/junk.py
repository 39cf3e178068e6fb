"""What a stranger may send: bodies and headers that make no sense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

BODIES: tuple[bytes, ...] = (
    b"",
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"{}",
    b"[null, 7, [], {}]",
    b"\xff\xfe",
    b"{",
    b'{"id": null}',
    b'{"id": 5, "status": 5, "type": 5, "event": 5}',
    b'{"id": "", "status": "", "type": "", "event": "", "data": ""}',
    b'{"id": {"a": []}, "status": [], "type": {}, "event": {}, "data": []}',
    b'{"data": {"id": 7}, "type": "x"}',
)

HEADERS: tuple[str, ...] = (
    "",
    " ",
    "x",
    "0",
    "-1",
    "1e400",
    "1614265330.5",
    "9" * 30,
    "\u00b2\u00b3",
    "v1,",
    "v1,!!!!",
    "v1,AAAA=====",
    "sha256=",
    "t=,v0=",
    ",,,,",
    "=" * 50,
    "{}",
    "\u00e9" * 20,
    "A" * 5000,
)

_VALUES: tuple[Any, ...] = (None, 7, "", [], {}, True, ["x"], {"id": "x"})


def altered(body: bytes) -> Iterator[bytes]:
    """The body with each of its members, two levels deep, missing or of another type."""
    try:
        whole = orjson.loads(body)
    except ValueError:
        return
    for path in _paths(whole, 2):
        for value in (..., *_VALUES):
            yield orjson.dumps(_with(whole, path, value))


def renamed(body: bytes, names: tuple[str, ...] = ("type", "status", "event")) -> bytes:
    """The body with what happened, wherever it says so, replaced by what does not exist yet."""
    whole = orjson.loads(body)
    for path in list(_paths(whole, 2)):
        if path[-1] in names:
            whole = _with(whole, path, "something.of_the_future")
    return orjson.dumps(whole)


def _paths(value: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    members = dict(enumerate(value)) if isinstance(value, list) else value
    for name, inner in members.items() if isinstance(members, dict) else ():
        yield (name,)
        if depth > 1:
            yield from ((name, *rest) for rest in _paths(inner, depth - 1))


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    name, *rest = path
    copy = value.copy()
    if rest:
        copy[name] = _with(value[name], tuple(rest), new)
    elif new is ...:
        del copy[name]
    else:
        copy[name] = new
    return copy
