"""An array of events, element by element: what strangers wrote into one must not cost the others.

SendGrid's events hold what people and servers said: user agents, URLs, replies of mail servers.
Most batches are plain JSON. For one that is not, each element is read for itself, as leniently as
makes sense; what cannot be read is left out up to the next line, for SendGrid gives each event one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from agentflow import Delivery

_GAP = re.compile(r"[\s,]*")
_NEXT = re.compile(r",?[ \t]*\r?\n[ \t]*(?=\{)")
"""Where the next element begins, behind one that makes no sense."""

_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None)


def elements(delivery: Delivery) -> list[Any]:
    """The elements of a batch, without those that cannot be read; none if it is no batch."""
    try:
        found = delivery.json
    except ValueError:
        return list(_each(delivery.body.decode("utf-8-sig", "replace").strip()))
    return found if isinstance(found, list) else []


def _each(text: str) -> Iterator[Any]:
    at = 1
    if not text.startswith("["):
        return
    while (at := _end(_GAP, text, at)) < len(text) and text[at] != "]":
        try:
            element, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            following = _NEXT.search(text, at)
            if following is None:
                return
            at = following.end()
        else:
            yield _plain(element)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _plain(element: Any) -> Any:
    """An event's own members with text that can be written down again: no half of a character."""
    if not isinstance(element, dict):
        return None
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in element.items()
    }
