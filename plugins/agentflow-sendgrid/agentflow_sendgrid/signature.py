"""How SendGrid signs its Event Webhook: ECDSA on P-256 with SHA-256 over timestamp and body.

From the page "Getting Started with the Event Webhook Security Features". The body counts byte for
byte: SendGrid ends its lines with CRLF and signs that.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agentflow import SettingsError, SignatureError, Verified

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

SIGNATURE = "x-twilio-email-event-webhook-signature"
TIMESTAMP = "x-twilio-email-event-webhook-timestamp"

_SECONDS = re.compile(r"[1-9][0-9]{0,10}")
_LONGEST = 200
"""Characters of a signature, which has at most 72 bytes."""


@dataclass(frozen=True, slots=True)
class EventWebhook:
    """The scheme of SendGrid. `key` and `tolerance` name the fields of the settings."""

    key: str = "webhook_public_key"
    tolerance: str = "webhook_tolerance"

    def verifier(self, settings: Any) -> EventWebhookVerifier:
        keys = str(getattr(settings, self.key) or "").replace(",", " ").split()
        return EventWebhookVerifier(keys, getattr(settings, self.tolerance))


@dataclass(frozen=True, slots=True)
class EventWebhookVerifier:
    """`keys` are public ones, base64 of SubjectPublicKeyInfo; any may have signed, so that the old
    and the new stand here while one replaces the other. `tolerance` is in seconds."""

    keys: Sequence[str]
    tolerance: float

    def check(self) -> None:
        if not self.keys:
            raise SettingsError(
                "No verification key is set: copy it from SendGrid's Event Webhook settings"
            )
        for number, key in enumerate(self.keys, start=1):
            try:
                public_key(key)
            except ValueError as error:
                place = f"Verification key {number} of {len(self.keys)}"
                raise SettingsError(f"{place} {error}") from None
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise SettingsError("The webhook tolerance must be a positive number of seconds")

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        timestamp, written = _header(headers, TIMESTAMP), _header(headers, SIGNATURE)
        if not _SECONDS.fullmatch(timestamp):
            raise SignatureError(f"malformed {TIMESTAMP}")
        signature = _decoded(written)
        sent_at = datetime.fromtimestamp(int(timestamp), UTC)
        age = (now - sent_at).total_seconds()
        if not -self.tolerance <= age <= self.tolerance:
            raise SignatureError("old timestamp" if age > 0 else "timestamp in the future")
        signed = timestamp.encode() + body
        if not any(_vouches(key, signature, signed) for key in self.keys):
            raise SignatureError("no signature matched")
        return Verified(None, sent_at)


def public_key(text: str) -> EllipticCurvePublicKey:
    """Raises `ValueError` with what is wrong, as the rest of a sentence."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        key = load_der_public_key(base64.b64decode(text, validate=True))
    except Exception:  # several, by what is wrong
        raise ValueError("is no public key in base64") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("is not on the curve P-256")
    return key


def _vouches(key: str, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        public_key(key).verify(signature, signed, ECDSA(SHA256()))
    except (InvalidSignature, ValueError):  # a key that `check` would refuse proves nothing
        return False
    return True


def _decoded(text: str) -> bytes:
    try:
        if len(text) > _LONGEST:
            raise ValueError
        return base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        raise SignatureError(f"malformed {SIGNATURE}") from None


def _header(headers: Mapping[str, str], name: str) -> str:
    values = [value for each, value in headers.items() if each.lower() == name]
    if len(values) != 1:
        raise SignatureError(f"{'repeated' if values else 'missing'} {name}")
    return values[0]
