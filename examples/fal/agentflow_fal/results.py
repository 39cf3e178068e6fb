"""What a model put out: the JSON as it is, and the files in it."""

from collections.abc import Iterator
from typing import Any

from agentflow import Artifact, Result

FILES = frozenset({"image", "images", "video", "videos", "audio", "audios", "file", "files"})
MARKS = frozenset({"content_type", "file_name", "file_size"})
"""What fal's `File` has beside its `url`; a model may also name pages that are no files of its."""


def result(payload: Any) -> Result:
    text = payload.get("output") if isinstance(payload, dict) else None
    files = {str(file["url"]): artifact(file) for file in found(payload)}
    return Result(
        output=payload,
        text=text if isinstance(text, str) else None,
        artifacts=list(files.values()),
    )


def artifact(file: dict[str, Any]) -> Artifact:
    name, media_type = file.get("file_name"), file.get("content_type")
    return Artifact(
        file["url"],
        name=name if isinstance(name, str) and name else None,
        media_type=media_type if isinstance(media_type, str) and media_type else None,
    )


def found(payload: Any) -> Iterator[dict[str, Any]]:
    """The files of a payload, in its order and however deep they lie."""
    todo: list[tuple[str, Any]] = [("", payload)]
    while todo:
        under, value = todo.pop()
        match value:
            case {"url": str(url)} if is_file(under, value) and is_url(url):
                yield value
            case dict():
                todo += [(str(name), inner) for name, inner in reversed(value.items())]
            case list():
                todo += [(under, inner) for inner in reversed(value)]
            case _:
                pass


def is_file(under: str, value: dict[str, Any]) -> bool:
    return under in FILES or not MARKS.isdisjoint(value)


def is_url(url: str) -> bool:
    return url.startswith(("https://", "http://", "data:"))
