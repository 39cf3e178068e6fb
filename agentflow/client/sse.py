"""Server-sent events, as far as our own server writes them (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, ended by LF or CR LF and by nothing else: JSON may hold U+2028 as it is."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()


def messages(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each message. Comments are skipped, and so is a message cut off at the end."""
    said: list[str] = []
    for line in lines(chunks):
        if not line:
            if said:
                yield "\n".join(said)
            said = []
        name, _, value = line.partition(":")
        if name == "data":
            said.append(value.removeprefix(" "))
