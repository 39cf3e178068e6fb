"""Server-sent events, as far as our own server writes them (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Message(NamedTuple):
    """`id` is the last one heard, also where this message had none of its own."""

    data: str
    id: str | None
    event: str = "message"


class Parser:
    """Takes bytes as they come and gives the messages they complete.

    Lines end by LF or CR LF and by nothing else: JSON may hold U+2028 as it is. Comments are
    skipped. What is cut off at the end is never given, nor is its id remembered. `last_id` is
    where to go on; a message without data may set it too.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._said: list[str] = []
        self._event = ""
        self._id: str | None = None
        self.last_id: str | None = None

    def feed(self, chunk: bytes) -> Iterator[Message]:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            yield from self._line(line.removesuffix(b"\r").decode())

    def _line(self, line: str) -> Iterator[Message]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            self.last_id = self._id
            if self._said:
                yield Message("\n".join(self._said), self._id, self._event or "message")
            self._said, self._event = [], ""
        elif name == "data":
            self._said.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value or None
