"""The type of a file and its name."""

import gzip
import io
import json
import wave
import zipfile

import pytest

from agentflow.artifacts.media import file_name, media_type, sniff


def wav() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 10)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", "b")
    return out.getvalue()


HEADS = [
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
    (b"GIF89a\x01\0", "image/gif"),
    (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
    (b"\0\0\0\x20ftypisom\0\0\2\0", "video/mp4"),
    (b"\0\0\0\x20ftypM4A \0\0\2\0", "audio/mp4"),
    (b"\0\0\0\x14ftypqt  \0\0\2\0", "video/quicktime"),
    (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\x82\x84webm", "video/webm"),
    (b"ID3\x04\0\0\0\0\0\0", "audio/mpeg"),
    (b"\xff\xfb\x90\x64\0", "audio/mpeg"),
    (wav(), "audio/wav"),
    (b"OggS\0\2" + b"\0" * 22 + b"OpusHead", "audio/ogg"),
    (b"OggS\0\2" + b"\0" * 22 + b"\x80theora", "video/ogg"),
    (b"fLaC\0\0\0\x22", "audio/flac"),
    (b"%PDF-1.7\n", "application/pdf"),
    (zipped(), "application/zip"),
    (gzip.compress(b"a"), "application/gzip"),
    (b"glTF\2\0\0\0\x10\0\0\0", "model/gltf-binary"),
    (json.dumps({"a": 1}).encode(), "application/json"),
    (b' \n[ {"a": 1}]', "application/json"),
    (b"{}", "application/json"),
    (b"[1, 2]", "application/json"),
]  # fmt: skip


@pytest.mark.parametrize(("head", "kind"), HEADS, ids=[kind for _, kind in HEADS])
def test_first_bytes_show_the_type(head: bytes, kind: str) -> None:
    assert sniff(head) == kind


@pytest.mark.parametrize(
    "head", [b"", b"plain text", b"{\\rtf1", b"RIFF\0\0\0\0AVI ", b"[section]"]
)
def test_other_bytes_show_nothing(head: bytes) -> None:
    assert sniff(head) is None


def test_bytes_are_believed_before_words() -> None:
    assert media_type(b"%PDF-1.7", ["text/html"], "a.txt") == "application/pdf"


def test_the_first_meaningful_declaration_is_believed_before_the_name() -> None:
    declared = [None, "", "nonsense", "application/octet-stream", "Text/CSV; charset=utf-8"]
    assert media_type(b"a,b", declared, "a.md") == "text/csv"


def test_the_name_is_believed_last() -> None:
    assert media_type(b"# A", [None], "READ.ME.MD") == "text/markdown"
    assert media_type(b"?", [None], "md") == "application/octet-stream"


@pytest.mark.parametrize(
    ("head", "declared", "kind"),
    [
        (b"PK\3\4", "application/vnd.oasis.opendocument.text", None),
        (b"PK\3\4", "application/epub+zip", None),
        (b"PK\3\4", "text/html", "application/zip"),
        (b'{"a"', "model/gltf+json", None),
        (b'{"a"', "text/plain", "application/json"),
        (b"\0\0\0\x20ftypisom", "audio/mp4", None),
        (b"OggS", "video/ogg", None),
    ],
)
def test_a_declaration_may_name_what_is_in_the_container(
    head: bytes, declared: str, kind: str | None
) -> None:
    assert media_type(head, [declared], "") == (kind or declared)


@pytest.mark.parametrize(
    ("given", "path", "name"),
    [
        ("out.png", "/x/other.jpg", "out.png"),
        (None, "/x/out 0.png", "out 0.png"),
        ("../../etc/passwd", "", "passwd"),
        ("C:\\temp\\a.txt", "", "a.txt"),
        ("a\r\n\0\u202eb.txt", "", "ab.txt"),
        (".hidden", "", "hidden"),
        ("..", "/", "file"),
        (None, "", "file"),
        ("a" * 300 + ".png", "", "a" * 196 + ".png"),
        ("\ud800.png", "", "png"),
    ],
)
def test_a_name_has_no_folder_and_nothing_unprintable(
    given: str | None, path: str, name: str
) -> None:
    assert file_name(given, path) == name
