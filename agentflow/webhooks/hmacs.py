"""Webhooks signed by an HMAC, in the many forms that providers have: a scheme written as data.

A form is two templates. `signed` is what is signed, as `{timestamp}.{body}`; `form` is how the
header writes it, as `sha256={signature}` or `t={timestamp},v1={signature}`. With commas it is
pairs in any order, of which others are passed over and a signature may stand more than once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from agentflow.core.providers import Verified
from agentflow.errors import SettingsError, SignatureError
from agentflow.webhooks.evidence import (
    ID,
    MAX_SIGNATURES,
    check_header,
    check_keys,
    check_tolerance,
    decoded,
    instant,
    keys_of,
    one,
)

Encoding: TypeAlias = Literal["hex", "base64"]
Hash: TypeAlias = Literal["sha1", "sha256", "sha384", "sha512"]
KeyForm: TypeAlias = Literal["text", "base64"]

MIN_SECRET_BYTES = 16
MAX_SECRET_BYTES = 512

_LONGEST = 4096
_WRITTEN = re.compile(r"[A-Za-z0-9+/=_-]{1,256}")
_PAIR = re.compile(r"([a-z0-9_]{1,32})=\{(timestamp|signature)\}")
_FIELDS = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class Hmac:
    """The scheme of a provider that signs by an HMAC.

    `secret` names the field of the provider's settings that holds the keys, one or several (see
    `StandardWebhooks`). `header` holds the signature as `form` writes it. `timestamp` and `id` are
    the headers of the time and of the delivery's id, where these have their own. `key` says
    whether the key's text is the key, or base64 of it (after `whsec_`, if that is there).
    `tolerance` is in seconds, on either side of now; None for a form without a time.
    """

    secret: str
    header: str
    signed: str = "{body}"
    form: str = "{signature}"
    timestamp: str | None = None
    id: str | None = None
    encoding: Encoding = "hex"
    hash: Hash = "sha256"
    key: KeyForm = "text"
    tolerance: float | None = 300.0

    def verifier(self, settings: Any) -> HmacVerifier:
        return HmacVerifier(keys_of(settings, self.secret), self)

    @classmethod
    def github(cls, secret: str) -> Hmac:
        """No time is signed, so nothing but the delivery's id tells a repetition."""
        return cls(
            secret, "x-hub-signature-256", form="sha256={signature}", id="x-github-delivery",
            tolerance=None,
        )  # fmt: skip

    @classmethod
    def slack(cls, secret: str) -> Hmac:
        return cls(
            secret, "x-slack-signature", "v0:{timestamp}:{body}", "v0={signature}",
            timestamp="x-slack-request-timestamp",
        )  # fmt: skip

    @classmethod
    def stripe(cls, secret: str) -> Hmac:
        """The key is the whole text, `whsec_` included."""
        return cls(secret, "stripe-signature", "{timestamp}.{body}", "t={timestamp},v1={signature}")

    @classmethod
    def elevenlabs(cls, secret: str) -> Hmac:
        return cls(
            secret, "elevenlabs-signature", "{timestamp}.{body}", "t={timestamp},v0={signature}",
            tolerance=1800.0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class HmacVerifier:
    """`keys` as the provider shows them; any may have signed."""

    keys: Sequence[str] = field(repr=False)
    scheme: Hmac

    def check(self) -> None:
        _check_form(self.scheme)
        check_keys(self.keys, self._secret)

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        scheme = self.scheme
        timestamp, claimed = _claims(scheme, one(headers, scheme.header))
        if scheme.timestamp is not None:
            timestamp = one(headers, scheme.timestamp)
        delivery_id = None if scheme.id is None else one(headers, scheme.id)
        if delivery_id is not None and not ID.fullmatch(delivery_id):
            raise SignatureError(f"malformed {scheme.id}")
        sent_at = None
        if timestamp is not None:
            place = scheme.timestamp or scheme.header
            sent_at = instant(timestamp, place, now, scheme.tolerance)
        around = {"timestamp": timestamp or "", "id": delivery_id or ""}
        before, _, after = scheme.signed.partition("{body}")
        parts = (_filled(before, around), body, _filled(after, around))
        for secret in self._secrets():
            expected = _written(scheme, hmac.new(secret, b"".join(parts), scheme.hash).digest())
            # Text against text: nothing a stranger wrote is decoded, and there is only one way to
            # write the right answer.
            if any(hmac.compare_digest(expected, each) for each in claimed):
                return Verified(delivery_id, sent_at, (scheme.header,))
        raise SignatureError("no signature matched")

    def _secrets(self) -> Iterator[bytes]:
        # A key that `check` would refuse proves nothing: it is passed over, above all an empty one.
        for key in self.keys:
            with suppress(ValueError):
                yield self._secret(key)

    def _secret(self, key: str) -> bytes:
        """The bytes of a key. Raises ValueError with what is wrong, as the rest of a sentence."""
        if self.scheme.key == "text":
            secret = key.encode()
        else:
            try:
                secret = decoded(key.removeprefix("whsec_"))
            except ValueError:
                raise ValueError("is not base64") from None
        if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
            raise ValueError(f"is not of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
        return secret


def _claims(scheme: Hmac, header: str) -> tuple[str | None, list[str]]:
    """The time and the signatures that a header writes. Raises `SignatureError`."""
    if len(header) > _LONGEST:
        raise SignatureError(f"malformed {scheme.header}")
    pairs = _PAIR.findall(scheme.form) if "," in scheme.form else None
    timestamps, signatures = [], []
    if pairs is None:
        before, _, after = scheme.form.partition("{signature}")
        if not (header.startswith(before) and header.endswith(after)):
            raise SignatureError(f"malformed {scheme.header}")
        signatures.append(header[len(before) : len(header) - len(after)])
    else:
        meaning = dict(pairs)
        for segment in header.split(","):
            name, _, value = segment.partition("=")
            if meaning.get(name) == "timestamp":
                timestamps.append(value)
            elif meaning.get(name) == "signature":
                signatures.append(value)
        if len(timestamps) > 1:
            raise SignatureError("repeated timestamp")
        if not timestamps and "timestamp" in meaning.values():
            raise SignatureError("missing timestamp")
    if len(signatures) > MAX_SIGNATURES:
        raise SignatureError("too many signatures")
    if not signatures or not all(map(_WRITTEN.fullmatch, signatures)):
        raise SignatureError(f"malformed {scheme.header}")
    return (timestamps[0] if timestamps else None), signatures


def _filled(template: str, values: Mapping[str, str]) -> bytes:
    return _FIELDS.sub(lambda found: values[found[1]], template).encode()


def _written(scheme: Hmac, digest: bytes) -> str:
    return digest.hex() if scheme.encoding == "hex" else base64.b64encode(digest).decode()


def _check_form(scheme: Hmac) -> None:
    """Raises `SettingsError` for templates that cannot be, or that prove less than they seem to."""
    for name in (scheme.header, scheme.timestamp, scheme.id):
        check_header(name)
    check_tolerance(scheme.tolerance)
    known = ("body", "timestamp", "id")
    used = _FIELDS.findall(scheme.signed)
    if used.count("body") != 1 or not set(used) <= set(known):
        raise SettingsError("What is signed is a template with {body}, {timestamp}, {id}")
    if scheme.form.count("{signature}") != 1:
        raise SettingsError("The form of the signature's header has {signature} once")
    segments = scheme.form.split(",")
    if len(segments) > 1 and not all(map(_PAIR.fullmatch, segments)):
        raise SettingsError("The form of the signature's header is like t={timestamp},v1={…}")
    timed = scheme.timestamp is not None or "{timestamp}" in scheme.form
    if timed != ("timestamp" in used):
        raise SettingsError("The timestamp must be both sent and signed, or neither")
    if len(segments) == 1 and "{timestamp}" in scheme.form:
        raise SettingsError("A timestamp within the signature's header stands in a pair: t=…,v1=…")
    if timed is (scheme.tolerance is None):
        raise SettingsError("A tolerance belongs to a timestamp, and a timestamp has one")
    if "id" in used and scheme.id is None:
        raise SettingsError("The id that is signed needs the header it comes in")
    if scheme.hash not in hashlib.algorithms_guaranteed:
        raise SettingsError(f"{scheme.hash!r} is no hash")
