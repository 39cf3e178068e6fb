"""What every scheme reads alike: a header that stands once, the time of signing, keys in settings.

Nothing a stranger writes makes these raise anything but `SignatureError`.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from agentflow.errors import SettingsError, SignatureError

MAX_SIGNATURES = 16
"""Many times what a rotation of keys needs; it bounds the work a stranger can ask for."""

# Visible ASCII without the full stop. What is signed is often `id.timestamp.body`, so with a full
# stop in the id one signature would cover two deliveries: ("a", 1, "2.x") and ("a.1", 2, "x").
ID = re.compile(r"[!-\-/-~]{1,255}")
# As a sender writes an integer, and never past the year 5138, so that it is always a datetime.
TIMESTAMP = re.compile(r"[1-9][0-9]{0,10}")
HEADER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


def one(headers: Mapping[str, str], name: str) -> str:
    """The value of the header with this lower-case name, which must be there once."""
    values = [value for each, value in headers.items() if each.lower() == name]
    match values:
        case [value]:
            return value
        case []:
            raise SignatureError(f"missing {name}")
        case _:
            raise SignatureError(f"repeated {name}")


def instant(text: str, name: str, now: datetime, tolerance: float | None) -> datetime:
    """The Unix time in the header `name`, no further than `tolerance` seconds from now."""
    if not TIMESTAMP.fullmatch(text):
        raise SignatureError(f"malformed {name}")
    sent_at = datetime.fromtimestamp(int(text), UTC)
    age = (now - sent_at).total_seconds()
    if tolerance is not None and not -tolerance <= age <= tolerance:
        raise SignatureError("old timestamp" if age > 0 else "timestamp in the future")
    return sent_at


def keys_of(settings: Any, field: str) -> list[str]:
    """The keys in a field of the settings: one text with spaces or commas between them (both
    stand there while one replaces the other), or a list."""
    value = getattr(settings, field, None)
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    return value.replace(",", " ").split() if isinstance(value, str) else list(value or ())


def check_keys(
    keys: Sequence[str],
    read: Callable[[str], object],
    way_out: str = "copy the signing secret from the provider",
) -> None:
    """Raises `SettingsError` where there is no key, with the way out of that, or for the first that
    `read` raises ValueError about, with what is wrong as the rest of a sentence."""
    if isinstance(keys, str):
        raise SettingsError("The webhook keys must be a list: [key]")
    if not keys:
        raise SettingsError(f"No webhook key is set: {way_out}")
    for number, key in enumerate(keys, start=1):
        try:
            read(key)
        except ValueError as error:
            place = f"Webhook key {number} of {len(keys)}"
            raise SettingsError(f"{place} {error}") from None


def decoded(text: str) -> bytes:
    """Base64, with its padding or without, and nothing else. Raises `ValueError`."""
    unpadded = text.rstrip("=")
    found = base64.b64decode(unpadded + "=" * (-len(unpadded) % 4))
    # b64decode passes over characters it does not know, so only the way back shows what it read.
    canonical = base64.b64encode(found).decode()
    if text not in (canonical, canonical.rstrip("=")):
        raise ValueError("is not base64")
    return found


def check_tolerance(seconds: float | None) -> None:
    """Raises `SettingsError`."""
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise SettingsError("The webhook tolerance must be a positive number of seconds")


def check_header(name: str | None) -> None:
    """Raises `SettingsError` for what no header is called."""
    if name is not None and not HEADER_NAME.fullmatch(name):
        raise SettingsError(f"{name!r} is no header's name in lower case")
