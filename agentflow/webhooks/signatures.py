"""Proof that a delivery comes from whom it says: schemes that check one, and the words to sign one.

Standard Webhooks 1.0.0 (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md)
is read to the letter here, and whatever it does not describe is refused. The published libraries
are laxer, each in its own way: they take a bare signature, a fractional timestamp or an empty key,
or let `binascii.Error` out on a header anyone can send.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr

from agentflow.core.providers import Verified
from agentflow.errors import SettingsError, SignatureError, UsageError

KEY_PREFIX = "whsec_"
MIN_KEY_BYTES = 24
MAX_KEY_BYTES = 64
MAX_SIGNATURES = 16
"""Many times what a rotation of keys needs; it bounds the work a stranger can ask for."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Visible ASCII without the full stop. What is signed is `id.timestamp.body`, so with a full stop in
# the id one signature would cover two deliveries: ("a", 1, "2.x") and ("a.1", 2, "x"). The spec
# forbids it for that reason.
_ID = re.compile(r"[!-\-/-~]{1,255}")
# As a sender writes an integer, and never past the year 5138, so that it is always a datetime.
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,10}")
_SIGNATURE = re.compile(r"[A-Za-z0-9]+,[A-Za-z0-9+/=_-]+")


@dataclass(frozen=True, slots=True)
class StandardWebhooks:
    """The scheme of a provider that signs by Standard Webhooks 1.0.0.

    `secret` names the field of the provider's settings that holds the keys, as one text with
    spaces or commas between them (both stand there while one replaces the other), or as a list.
    """

    secret: str
    tolerance: float = 300.0

    def verifier(self, settings: Any) -> StandardWebhooksVerifier:
        value = getattr(settings, self.secret, None)
        value = value.get_secret_value() if isinstance(value, SecretStr) else value
        keys = value.replace(",", " ").split() if isinstance(value, str) else list(value or ())
        return StandardWebhooksVerifier(keys, self.tolerance)


@dataclass(frozen=True, slots=True)
class StandardWebhooksVerifier:
    """Standard Webhooks 1.0.0 with symmetric keys (`v1`, HMAC-SHA256).

    `keys` are the secrets as the provider shows them, `whsec_` and base64; any may have signed, so
    both the old and the new stand here while one replaces the other. `tolerance` is in seconds, on
    either side of now.
    """

    keys: Sequence[str] = field(repr=False)
    tolerance: float = 300.0

    def check(self) -> None:
        if isinstance(self.keys, str):
            raise SettingsError("The webhook keys must be a list: [key]")
        if not self.keys:
            raise SettingsError("No webhook key is set: copy the signing secret from the provider")
        for number, key in enumerate(self.keys, start=1):
            try:
                _secret(key)
            except ValueError as error:
                place = f"Webhook key {number} of {len(self.keys)}"
                raise SettingsError(f"{place} {error}") from None
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise SettingsError("The webhook tolerance must be a positive number of seconds")

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        delivery_id = _header(headers, "webhook-id")
        timestamp = _header(headers, "webhook-timestamp")
        claimed = _claimed(_header(headers, "webhook-signature"))
        if not _ID.fullmatch(delivery_id):
            raise SignatureError("malformed webhook-id")
        if not _TIMESTAMP.fullmatch(timestamp):
            raise SignatureError("malformed webhook-timestamp")

        sent_at = datetime.fromtimestamp(int(timestamp), UTC)
        age = (now - sent_at).total_seconds()
        if not -self.tolerance <= age <= self.tolerance:
            raise SignatureError("old timestamp" if age > 0 else "timestamp in the future")

        for secret in self._secrets():
            expected = _v1(secret, delivery_id, timestamp, body)
            # Base64 against base64: nothing a stranger wrote is decoded, and there is only one
            # way to write the right answer.
            if any(hmac.compare_digest(expected, each) for each in claimed):
                return Verified(delivery_id, sent_at)
        raise SignatureError("no signature matched")

    def _secrets(self) -> Iterator[bytes]:
        # A key that `check` would refuse proves nothing: it is passed over, above all an empty one.
        for key in self.keys:
            with suppress(ValueError):
                yield _secret(key)


def sign(key: str, delivery_id: str, sent_at: datetime, body: bytes) -> dict[str, str]:
    """The headers that prove a delivery by Standard Webhooks `v1`.

    `sent_at` is aware, of any zone; its fraction of a second is dropped. Raises SettingsError for a
    key that receivers should refuse, UsageError for an id or a time that cannot be signed.
    """
    if not _ID.fullmatch(delivery_id):
        raise UsageError("delivery_id must be 1 to 255 visible ASCII characters without '.'")
    if sent_at.utcoffset() is None:
        raise UsageError("sent_at must be aware: datetime.now(UTC)")
    timestamp = str((sent_at - _EPOCH) // timedelta(seconds=1))
    if not _TIMESTAMP.fullmatch(timestamp):
        raise UsageError("sent_at must lie between 1970 and 5138")
    try:
        secret = _secret(key)
    except ValueError as error:
        raise SettingsError(f"The webhook key {error}") from None
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{_v1(secret, delivery_id, timestamp, body)}",
    }


def new_secret() -> str:
    """A fresh key of 32 random bytes, as Standard Webhooks writes it."""
    return KEY_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _secret(key: str) -> bytes:
    """The bytes of a key. Raises ValueError with what is wrong, as the rest of a sentence."""
    if not key:
        raise ValueError("is empty")
    if not key.startswith(KEY_PREFIX):
        raise ValueError(f"does not start with {KEY_PREFIX}")
    text = key.removeprefix(KEY_PREFIX)
    unpadded = text.rstrip("=")
    try:
        secret = base64.b64decode(unpadded + "=" * (-len(unpadded) % 4))
    except ValueError:
        raise ValueError("is not base64") from None
    # b64decode passes over characters it does not know, so only the way back shows what it read.
    canonical = base64.b64encode(secret).decode()
    if text not in (canonical, canonical.rstrip("=")):
        raise ValueError("is not base64")
    if not MIN_KEY_BYTES <= len(secret) <= MAX_KEY_BYTES:
        raise ValueError(f"is not of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes")
    return secret


def _v1(secret: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    mac = hmac.new(secret, f"{delivery_id}.{timestamp}.".encode("ascii"), hashlib.sha256)
    mac.update(body)
    return base64.b64encode(mac.digest()).decode()


def _header(headers: Mapping[str, str], name: str) -> str:
    values = [value for each, value in headers.items() if each.lower() == name]
    match values:
        case [value]:
            return value
        case []:
            raise SignatureError(f"missing {name}")
        case _:
            raise SignatureError(f"repeated {name}")


def _claimed(header: str) -> list[str]:
    """The base64 of each `v1` signature; other versions are for other readers."""
    segments = header.split(" ", MAX_SIGNATURES)
    if len(segments) > MAX_SIGNATURES:
        raise SignatureError("too many signatures")
    if not all(_SIGNATURE.fullmatch(each) for each in segments):
        raise SignatureError("malformed webhook-signature")
    return [each.removeprefix("v1,") for each in segments if each.startswith("v1,")]
