"""Webhooks that prove themselves by a header of our own choice: AssemblyAI's way.

The weakest of the schemes, as it says nothing about the body: whoever sees one delivery can make
others. Use it over https only, and with `per_request`, whose URL is different for each attempt.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentflow.core.providers import Verified
from agentflow.errors import SignatureError
from agentflow.webhooks.evidence import check_header, check_keys, keys_of, one

MIN_LENGTH = 16

_SECRET = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class StaticHeader:
    """The scheme of a provider that sends a secret header along.

    `secret` names the field of the provider's settings that holds the values, one or several (see
    `StandardWebhooks`), each of 16 characters or more; `prefix` stands before it, as `Bearer `.
    """

    secret: str
    header: str
    prefix: str = ""

    def value(self, settings: Any) -> str | None:
        """What the provider is to be told to send in the header: the first of the values, so that
        the newest stands first while two of them count. None where webhooks would be refused."""
        first = next(iter(keys_of(settings, self.secret)), "")
        return self.prefix + first if _good(first) else None

    def verifier(self, settings: Any) -> StaticHeaderVerifier:
        return StaticHeaderVerifier(keys_of(settings, self.secret), self.header, self.prefix)


@dataclass(frozen=True, slots=True)
class StaticHeaderVerifier:
    keys: Sequence[str] = field(repr=False)
    header: str
    prefix: str = ""

    def check(self) -> None:
        check_header(self.header)
        check_keys(self.keys, _checked, f"choose one of {MIN_LENGTH} or more characters")

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        del body, now
        written = one(headers, self.header).encode(errors="surrogatepass")
        matched = False
        for key in filter(_good, self.keys):  # one that `check` would refuse proves nothing
            matched |= hmac.compare_digest((self.prefix + key).encode(), written)
        if not matched:
            raise SignatureError(f"wrong {self.header}")
        return Verified(proof=(self.header,))


def _checked(key: str) -> None:
    """Raises ValueError with what is wrong, as the rest of a sentence."""
    if not _good(key):
        raise ValueError(f"is not of {MIN_LENGTH} or more visible ASCII characters")


def _good(key: str) -> bool:
    return len(key) >= MIN_LENGTH and _SECRET.fullmatch(key) is not None
