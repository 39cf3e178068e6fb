"""Small pictures out of words, so that a demo has something to show without an image library."""

from __future__ import annotations

import struct
import zlib
from hashlib import blake2b

CELLS = 8
SCALE = 16


def picture(text: str) -> bytes:
    """A PNG of 128 by 128 pixels: a symmetric pattern, the same for the same text."""
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
    light, dark = digest[:3], bytes(part // 3 for part in digest[3:6])
    rows = []
    for y in range(CELLS):
        half = [light if digest[8 + y] >> x & 1 else dark for x in range(CELLS // 2)]
        row = b"".join(color * SCALE for color in half + half[::-1])
        rows.append((b"\x00" + row) * SCALE)  # a zero before each line of pixels: no filter
    side = CELLS * SCALE
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
