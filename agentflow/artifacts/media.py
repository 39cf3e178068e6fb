"""What kind of file it is, and what to call it.

First bytes are believed before what others declare, and that before a name's extension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

HEAD = 512
"""How many first bytes are looked at."""

UNKNOWN = "application/octet-stream"

_MAGIC = tuple(
    (re.compile(pattern, re.DOTALL), media_type)
    for pattern, media_type in (
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBP", "image/webp"),
        (rb"RIFF....WAVE", "audio/wav"),
        (rb"....ftypavi[fs]", "image/avif"),
        (rb"....ftyp(hei[cx]|mif1)", "image/heic"),
        (rb"....ftypM4[AB] ", "audio/mp4"),
        (rb"....ftypqt  ", "video/quicktime"),
        (rb"....ftyp", "video/mp4"),
        (rb"\x1a\x45\xdf\xa3.{0,60}?webm", "video/webm"),
        (rb"\x1a\x45\xdf\xa3.{0,60}?matroska", "video/x-matroska"),
        (rb"ID3[\x02-\x04]|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "audio/mpeg"),
        (rb"OggS.{0,60}?\x80theora", "video/ogg"),
        (rb"OggS", "audio/ogg"),
        (rb"fLaC", "audio/flac"),
        (rb"%PDF-", "application/pdf"),
        (rb"PK(\x03\x04|\x05\x06)", "application/zip"),
        (rb"\x1f\x8b\x08", "application/gzip"),
        (rb"glTF[\x01\x02]\0\0\0", "model/gltf-binary"),
        (
            rb"(\xef\xbb\xbf)?\s*(\{\s*[\"}]|\[\s*([\[\]{\"0-9-]|true|false|null))",
            "application/json",
        ),
    )
)
_EXTENSIONS = {
    ".csv": "text/csv",
    ".flac": "audio/flac",
    ".gif": "image/gif",
    ".glb": "model/gltf-binary",
    ".gz": "application/gzip",
    ".html": "text/html",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".mov": "video/quicktime",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".srt": "application/x-subrip",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".vtt": "text/vtt",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".zip": "application/zip",
}
_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
_VAGUE = {UNKNOWN, "binary/octet-stream", "application/binary", "application/x-download"}
_NAME_LENGTH = 200


def media_type(head: bytes, declared: Iterable[str | None], name: str) -> str:
    """The type by the first bytes, else the first meaningful one declared, else by extension.

    A declared type wins over the bytes only where it says more about the same container, as
    `audio/webm`, `application/geo+json` or `application/vnd.…` in a zip. Parameters are dropped.
    """
    sniffed = sniff(head)
    told = next((plain for each in declared if (plain := _plain(each))), None)
    if sniffed is None:
        return told or _EXTENSIONS.get(PurePath(name).suffix.lower(), UNKNOWN)
    return told if told and _refines(told, sniffed) else sniffed


def sniff(head: bytes) -> str | None:
    """The media type that the first bytes of a file show, or None."""
    return next((kind for pattern, kind in _MAGIC if pattern.match(head)), None)


def file_name(given: str | None, url_path: str = "") -> str:
    """A name to show and to save under: no folders, nothing unprintable, 1 to 200 characters."""
    for candidate in (given or "", url_path):
        last = re.split(r"[/\\]", candidate)[-1]
        name = "".join(filter(str.isprintable, last)).strip(" .")
        if name:
            return name[-_NAME_LENGTH:].lstrip(" .")
    return "file"


def _plain(declared: str | None) -> str | None:
    bare = (declared or "").partition(";")[0].strip().lower()
    return bare if bare not in _VAGUE and _TYPE.fullmatch(bare) else None


def _refines(told: str, sniffed: str) -> bool:
    subtype = told.partition("/")[2]
    match sniffed:
        case "application/zip":
            return subtype.startswith("vnd.") or subtype.endswith(("+zip", "java-archive"))
        case "application/json":
            return "json" in subtype
        case _:
            return subtype == sniffed.partition("/")[2]
