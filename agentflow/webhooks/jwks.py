"""Webhooks signed by Ed25519, the public keys at a URL as a JSON Web Key Set: fal's way.

The keys are held for a day and fetched anew when a signature fits none of them, at most once a
minute, so that nobody can make us ask the provider more often than that. `verify` does no I/O: the
web process calls `refresh` in between. Needs the extra `agentflow-core[ed25519]`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from agentflow.core.providers import Get, Verified
from agentflow.errors import KeysUnavailable, SettingsError, SignatureError, UnknownKey
from agentflow.webhooks.evidence import check_header, check_tolerance, instant, one

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_AGE = timedelta(hours=24)
PAUSE = timedelta(minutes=1)
MAX_KEYS = 16

FAL_KEYS = "https://rest.fal.ai/.well-known/jwks.json"

_SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")
_VALUE = re.compile(r"[!-~]{1,255}")
_FIELDS = re.compile(r"\{([^{}]*)\}")
_NOT_HEADERS = ("body", "sha256")


@dataclass(frozen=True, slots=True)
class Ed25519Jwks:
    """The scheme of a provider that signs by Ed25519 with keys of a JWKS.

    `url` is where the keys are, or names the field of the settings that says so. `header` holds
    the signature in hex, `timestamp` a Unix time, `id` the delivery's id. `signed` is what is
    signed, one part a line: `{name-of-a-header}`, `{sha256}` of the body in hex, or `{body}`.
    """

    url: str
    header: str
    timestamp: str
    signed: str
    id: str | None = None
    tolerance: float = 300.0

    def verifier(self, settings: Any) -> Ed25519JwksVerifier:
        url = self.url if "://" in self.url else str(getattr(settings, self.url, None) or "")
        return Ed25519JwksVerifier(url, self)

    @classmethod
    def fal(cls, url: str = FAL_KEYS) -> Ed25519Jwks:
        return cls(
            url,
            "x-fal-webhook-signature",
            "x-fal-webhook-timestamp",
            "{x-fal-webhook-request-id}\n{x-fal-webhook-user-id}\n{x-fal-webhook-timestamp}\n{sha256}",
            "x-fal-webhook-request-id",
        )


class Ed25519JwksVerifier:
    """Holds the keys it fetched."""

    def __init__(self, url: str, scheme: Ed25519Jwks) -> None:
        self.url, self.scheme = url, scheme
        self._keys: tuple[Ed25519PublicKey, ...] = ()
        self._fetched_at: datetime | None = None
        self._asked_at: datetime | None = None
        self._problem: str | None = None
        self._turn = asyncio.Lock()

    def check(self) -> None:
        if find_spec("cryptography") is None:
            raise SettingsError("Ed25519 needs a package: pip install 'agentflow-core[ed25519]'")
        try:
            parts = urlsplit(self.url)
            local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        except ValueError:
            raise SettingsError("The URL of the webhook keys is no URL") from None
        if not parts.hostname or parts.scheme not in ("https", *(["http"] if local else [])):
            raise SettingsError("The URL of the webhook keys must be https")
        scheme = self.scheme
        for name in (scheme.header, scheme.timestamp, scheme.id):
            check_header(name)
        check_tolerance(scheme.tolerance)
        used = _FIELDS.findall(scheme.signed)
        for name in (n for n in used if n not in _NOT_HEADERS):
            check_header(name)
        if scheme.timestamp not in used or not {"body", "sha256"} & set(used):
            raise SettingsError("The timestamp and the body, or its sha256, must be signed")
        if not all(_FIELDS.fullmatch(line) for line in scheme.signed.split("\n")):
            raise SettingsError("What is signed has one {part} a line")

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        """Raises `UnknownKey` where other keys than those held may say otherwise."""
        scheme = self.scheme
        written = one(headers, scheme.header)
        if not _SIGNATURE.fullmatch(written):
            raise SignatureError(f"malformed {scheme.header}")
        sent_at = instant(one(headers, scheme.timestamp), scheme.timestamp, now, scheme.tolerance)
        signed = self._signed(headers, body)
        delivery_id = None if scheme.id is None else one(headers, scheme.id)
        signature = bytes.fromhex(written)
        if not any(_vouches(key, signature, signed) for key in self._held(now)):
            raise UnknownKey("no signature matched")
        return Verified(delivery_id, sent_at, (scheme.header,))

    async def refresh(self, get: Get, now: datetime) -> None:
        """Fetch the keys by `get(url)`, unless that was done within the last minute. Raises
        `KeysUnavailable` as long as the last try has brought none."""
        async with self._turn:
            due = self._asked_at is None or not timedelta() <= now - self._asked_at < PAUSE
            if due:
                # Said before, for a fetch that is broken off must not count as one that came home.
                self._asked_at, self._problem = now, "the answer did not come"
                try:
                    self._keys = keys_in(await get(self.url))
                    self._fetched_at, self._problem = now, None
                except Exception as error:  # the network, what it brought
                    self._problem = f"{type(error).__name__}: {error}"[:200]
            if self._problem is not None:
                raise KeysUnavailable(f"The webhook keys cannot be fetched: {self._problem}")

    def _held(self, now: datetime) -> tuple[Ed25519PublicKey, ...]:
        fresh = self._fetched_at is not None and now - self._fetched_at < MAX_AGE
        return self._keys if fresh else ()

    def _signed(self, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = []
        for name in _FIELDS.findall(self.scheme.signed):
            match name:
                case "body":
                    lines.append(body)
                case "sha256":
                    lines.append(hashlib.sha256(body).hexdigest().encode())
                case _:
                    value = one(headers, name)
                    if not _VALUE.fullmatch(value):  # with a line break it could be another's line
                        raise SignatureError(f"malformed {name}")
                    lines.append(value.encode())
        return b"\n".join(lines)


def keys_in(document: bytes) -> tuple[Ed25519PublicKey, ...]:
    """The Ed25519 keys of a JWKS (RFC 7517, RFC 8037), one at least. Raises `ValueError`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    said = orjson.loads(document)
    listed = said.get("keys") if isinstance(said, dict) else None
    found = [
        Ed25519PublicKey.from_public_bytes(_x(each.get("x")))
        for each in (listed if isinstance(listed, list) else ())[:MAX_KEYS]
        if isinstance(each, dict) and (each.get("kty"), each.get("crv")) == ("OKP", "Ed25519")
    ]
    if not found:
        raise ValueError("there is no Ed25519 key in it")
    return tuple(found)


def _x(text: Any) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]{43}=?", text):
        raise ValueError("a key is not 32 bytes in base64url")
    return base64.urlsafe_b64decode(text[:43] + "=")


def _vouches(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
