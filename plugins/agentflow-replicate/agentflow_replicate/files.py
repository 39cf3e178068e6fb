"""Files of ours in a prediction's input: `art_…` becomes something the SDK uploads."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentflow import Call

_ARTIFACT = re.compile(r"art_[0-9a-f]{32}_[0-9]{1,6}")

_KINDS = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (8, b"WAVE", "wav"),
    (0, b"ID3", "mp3"),
    (4, b"ftyp", "mp4"),
    (0, b"%PDF-", "pdf"),
)


class Upload(io.BytesIO):
    """Bytes with a file name: the SDK tells the media type by it, and models go by its ending."""

    def __init__(self, content: bytes, stem: str) -> None:
        super().__init__(content)
        kinds = (kind for at, magic, kind in _KINDS if content[at : at + len(magic)] == magic)
        self.name = f"{stem}.{next(kinds, 'bin')}"


async def with_files(call: Call, input: Any) -> Any:
    """The input with every string that is the id of an artifact replaced by its bytes.

    Raises `InvalidInput` for one that does not exist. URLs and data URIs pass as they are.
    """
    match input:
        case str() if _ARTIFACT.fullmatch(input):
            return Upload(await call.artifact(input), input)
        case dict():
            return {name: await with_files(call, value) for name, value in input.items()}
        case list():
            return [await with_files(call, value) for value in input]
        case _:
            return input
