"""Files inside their URL: `data:` (RFC 2397), read strictly."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from agentflow.artifacts.errors import SourceRefused

_HEADER_LENGTH = 1024
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def is_inline(url: str) -> bool:
    return url[:5].lower() == "data:"


def decode(url: str, max_bytes: int) -> tuple[str, bytes]:
    """The declared media type and the bytes of a `data:` URL.

    Raises `SourceRefused` for more than `max_bytes`, judged before decoding, and for any character
    that does not belong.
    """
    comma = url.find(",", 5, 5 + _HEADER_LENGTH)
    if comma < 0:
        raise SourceRefused("The data: URL has no comma after its media type.")
    header = url[5:comma].rstrip(" ")
    coded = header[-7:].lower() == ";base64"
    length = len(url) - comma - 1 - 2 * url.count("%", comma)
    if (length // 4 * 3 - 2 if coded else length) > max_bytes:
        raise SourceRefused(f"The data: URL holds more than {max_bytes} bytes.")
    content = _base64(url[comma + 1 :]) if coded else _percent(url[comma + 1 :])
    if len(content) > max_bytes:
        raise SourceRefused(f"The data: URL holds more than {max_bytes} bytes.")
    told = header[:-7] if coded else header
    return told if told and told[0] != ";" else f"text/plain{told}", content


def _percent(text: str) -> bytes:
    if not text.isascii() or _BAD_PERCENT.search(text):
        raise SourceRefused("The data: URL is not percent-encoded as it should be.")
    return unquote_to_bytes(text)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(_percent(text) if "%" in text else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SourceRefused("The data: URL is not base64 as it should be.") from error
