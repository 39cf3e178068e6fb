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
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from agentflow.core.providers import Verified
from agentflow.errors import SettingsError, SignatureError, UsageError
from agentflow.webhooks.evidence import (
    ID,
    MAX_SIGNATURES,
    TIMESTAMP,
    check_keys,
    check_tolerance,
    decoded,
    instant,
    keys_of,
    one,
)

KEY_PREFIX = "whsec_"
MIN_KEY_BYTES = 24
MAX_KEY_BYTES = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

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
        return StandardWebhooksVerifier(keys_of(settings, self.secret), self.tolerance)


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
        check_keys(self.keys, _secret)
        check_tolerance(self.tolerance)

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        delivery_id = one(headers, "webhook-id")
        timestamp = one(headers, "webhook-timestamp")
        claimed = _claimed(one(headers, "webhook-signature"))
        if not ID.fullmatch(delivery_id):
            raise SignatureError("malformed webhook-id")
        sent_at = instant(timestamp, "webhook-timestamp", now, self.tolerance)

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
    if not ID.fullmatch(delivery_id):
        raise UsageError("delivery_id must be 1 to 255 visible ASCII characters without '.'")
    if sent_at.utcoffset() is None:
        raise UsageError("sent_at must be aware: datetime.now(UTC)")
    timestamp = str((sent_at - _EPOCH) // timedelta(seconds=1))
    if not TIMESTAMP.fullmatch(timestamp):
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
    try:
        secret = decoded(key.removeprefix(KEY_PREFIX))
    except ValueError:
        raise ValueError("is not base64") from None
    if not MIN_KEY_BYTES <= len(secret) <= MAX_KEY_BYTES:
        raise ValueError(f"is not of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes")
    return secret


def _v1(secret: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    mac = hmac.new(secret, f"{delivery_id}.{timestamp}.".encode("ascii"), hashlib.sha256)
    mac.update(body)
    return base64.b64encode(mac.digest()).decode()


def _claimed(header: str) -> list[str]:
    """The base64 of each `v1` signature; other versions are for other readers."""
    segments = header.split(" ", MAX_SIGNATURES)
    if len(segments) > MAX_SIGNATURES:
        raise SignatureError("too many signatures")
    if not all(_SIGNATURE.fullmatch(each) for each in segments):
        raise SignatureError("malformed webhook-signature")
    return [each.removeprefix("v1,") for each in segments if each.startswith("v1,")]
