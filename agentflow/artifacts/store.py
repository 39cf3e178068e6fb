"""What custody asks of a storage, and the form of its keys."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from agentflow.errors import UsageError

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_LONGEST_KEY = 800


@dataclass(frozen=True, slots=True)
class Stored:
    """What a storage holds under `key`: `sha256` in lower-case hex, `size` in bytes."""

    key: str
    sha256: str
    size: int


class ArtifactStore(Protocol):
    """A storage of files by key. Failures of the storage are raised as `ArtifactStoreError`."""

    async def start(self) -> object:
        """Once, before anything else. Raises `SettingsError` for a storage that is not there or
        may not be used; one that is only out of reach may come back, and is no error."""
        ...

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> Stored:
        """Store the chunks under `key`, all of them or nothing, in place of what was there.

        Raises `ArtifactTooLarge` beyond `max_bytes`, and whatever `chunks` raises.
        """
        ...

    async def open(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to, not including, `end`; as a slice, none if out of range.

        Raises `NotFound` now, not at the first chunk.
        """
        ...

    async def size(self, key: str) -> int | None:
        """The size in bytes; None if there is no such key."""
        ...

    async def delete(self, key: str) -> None:
        """Forget the key; no error if there is none."""
        ...


def checked_key(key: str) -> str:
    """`key` itself, or `UsageError`.

    A key is one or more segments joined by `/`, at most 800 characters. A segment has 1 to 200 of
    `[A-Za-z0-9_.-]` and does not begin with a dot, so neither `..` nor a hidden file is one.
    """
    if len(key) <= _LONGEST_KEY and all(map(_SEGMENT.fullmatch, key.split("/"))):
        return key
    raise UsageError(
        f"{key[:100]!r} is not an artifact key. Write segments of letters, digits, '_', '-', '.' "
        "joined by '/', none beginning with a dot."
    )
