"""The schemes besides Standard Webhooks: signed here by hand, to the letter of each provider."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, SecretStr

from agentflow import Ed25519Jwks, Hmac, StaticHeader, scheme_of
from agentflow.core.providers import FetchesKeys, Verified
from agentflow.errors import KeysUnavailable, SettingsError, SignatureError, UnknownKey
from agentflow.webhooks.jwks import FAL_KEYS, Ed25519JwksVerifier

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
STAMP = str(int(NOW.timestamp()))
BODY = b'{"id": "p1"}\xff'
KEY, OLD, OTHER = "whsec_0123456789abcdef", "the-old-key-of-long", "x" * 32


class Keys(BaseModel):
    secret: SecretStr = SecretStr(f"{KEY} {OLD}")


def hexed(signed: bytes, key: str = KEY) -> str:
    return hmac.new(key.encode(), signed, "sha256").hexdigest()


def github(key: str = KEY) -> dict[str, str]:
    return {"X-Hub-Signature-256": f"sha256={hexed(BODY, key)}", "X-GitHub-Delivery": "d-1"}


def slack(key: str = KEY) -> dict[str, str]:
    signed = b"v0:" + STAMP.encode() + b":" + BODY
    return {"X-Slack-Signature": f"v0={hexed(signed, key)}", "X-Slack-Request-Timestamp": STAMP}


def stripe(key: str = KEY) -> dict[str, str]:
    signed = STAMP.encode() + b"." + BODY
    return {"Stripe-Signature": f"t={STAMP},v1={hexed(signed, key)},v0=junk"}


def elevenlabs(key: str = KEY) -> dict[str, str]:
    signed = STAMP.encode() + b"." + BODY
    return {"ElevenLabs-Signature": f"t={STAMP},v0={hexed(signed, key)}"}


@dataclass
class Case:
    scheme: Any
    headers: Callable[..., dict[str, str]]
    proven: Verified
    tolerance: float | None = 300.0


CASES = {
    "github": Case(Hmac.github("secret"), github, Verified("d-1"), None),
    "slack": Case(Hmac.slack("secret"), slack, Verified(None, NOW)),
    "stripe": Case(Hmac.stripe("secret"), stripe, Verified(None, NOW)),
    "elevenlabs": Case(Hmac.elevenlabs("secret"), elevenlabs, Verified(None, NOW), 1800.0),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def verify(scheme: Any, headers: dict[str, str], body: bytes = BODY, now: datetime = NOW) -> Any:
    verifier = scheme.verifier(Keys())
    verifier.check()
    return verifier.verify(headers, body, now)


@cases
def test_a_delivery_by_any_of_the_keys_is_proven(case: Case) -> None:
    for key in (KEY, OLD):
        assert verify(case.scheme, case.headers(key)) == case.proven


@cases
def test_a_delivery_by_another_key_or_with_another_body_is_refused(case: Case) -> None:
    for headers, body in ((case.headers(OTHER), BODY), (case.headers(), BODY + b"\n")):
        with pytest.raises(SignatureError, match="no signature matched"):
            verify(case.scheme, headers, body)


@cases
def test_every_header_is_needed_once(case: Case) -> None:
    good = case.headers()
    for name in good:
        with pytest.raises(SignatureError, match=f"missing {name.lower()}"):
            verify(case.scheme, {n: v for n, v in good.items() if n != name})
        with pytest.raises(SignatureError, match=f"repeated {name.lower()}"):
            verify(case.scheme, good | {name.lower(): good[name]})


@cases
def test_the_time_of_signing_lies_within_the_tolerance_on_either_side(case: Case) -> None:
    far = timedelta(days=400)
    if case.tolerance is None:
        assert verify(case.scheme, case.headers(), now=NOW + far) == case.proven
        return
    for sign in (1, -1):
        edge = timedelta(seconds=case.tolerance) * sign
        assert verify(case.scheme, case.headers(), now=NOW + edge) == case.proven
        with pytest.raises(SignatureError, match="old" if sign > 0 else "future"):
            verify(case.scheme, case.headers(), now=NOW + edge + timedelta(seconds=sign))


@cases
def test_the_header_with_the_proof_is_named_so_that_it_is_not_kept(case: Case) -> None:
    assert verify(case.scheme, case.headers()).proof == (next(iter(case.headers())).lower(),)


def test_a_signature_may_stand_among_others_while_keys_change() -> None:
    signed = STAMP.encode() + b"." + BODY
    both = f"v1={hexed(signed, OTHER)},t={STAMP},v1={hexed(signed)}"
    assert verify(CASES["stripe"].scheme, {"stripe-signature": both}) == Verified(None, NOW)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("", "missing timestamp"),
        (f"t={STAMP}", "malformed stripe-signature"),
        ("v1=ab", "missing timestamp"),
        (f"t={STAMP},t={STAMP},v1=ab", "repeated timestamp"),
        (f"t={STAMP}.5,v1=ab", "malformed stripe-signature"),
        (f"t=0{STAMP},v1=ab", "malformed stripe-signature"),
        (f"t={STAMP},v1=é", "malformed stripe-signature"),
        (f"t={STAMP}" + ",v1=ab" * 17, "too many signatures"),
        (f"t={STAMP},v1=ab" + "," * 5000, "malformed stripe-signature"),
        (f"t={STAMP}, v1={hexed(STAMP.encode() + b'.' + BODY)}", "malformed stripe-signature"),
    ],
)
def test_a_header_of_another_form_is_refused(header: str, why: str) -> None:
    with pytest.raises(SignatureError, match=f"^{why}$"):
        verify(CASES["stripe"].scheme, {"stripe-signature": header})


def test_a_form_has_its_prefix_and_its_letters() -> None:
    good = hexed(BODY)
    for odd in (good, f"sha1={good}", f"sha256={good.upper()}", f"sha256= {good}", "sha256="):
        with pytest.raises(SignatureError):
            verify(CASES["github"].scheme, github() | {"X-Hub-Signature-256": odd})


def test_any_hash_encoding_and_kind_of_key_can_be_declared() -> None:
    raw = bytes(range(24))
    key = "whsec_" + base64.b64encode(raw).decode()
    declared = {"kind": "hmac", "header": "x-sig", "signed": "{id}/{body}", "id": "x-id"}
    declared |= {"hash": "sha512", "encoding": "base64", "key": "base64", "tolerance": None}
    mac = hmac.new(raw, b"m1/" + BODY, "sha512").digest()
    headers = {"x-sig": base64.b64encode(mac).decode(), "x-id": "m1"}
    verifier = scheme_of(declared).verifier(type("K", (), {"webhook_secret": key}))
    verifier.check()
    assert verifier.verify(headers, BODY, NOW) == Verified("m1")
    for id in ("m2", "", "m.1", "ü"):
        with pytest.raises(SignatureError):
            verifier.verify(headers | {"x-id": id}, BODY, NOW)


@pytest.mark.parametrize(
    "keys", ["", "short", [], ["x" * 15], ["é" * 7], ["a" * 600], ["\ud800" * 9]]
)
@pytest.mark.parametrize("kind", ["hmac", "static"])
def test_a_missing_or_weak_key_is_refused_at_the_start_and_proves_nothing(
    keys: Any, kind: str
) -> None:
    scheme: Any = Hmac.github("secret") if kind == "hmac" else StaticHeader("secret", "x-key")
    if kind == "static" and keys == ["a" * 600]:
        keys = ["a b" * 10]
    verifier = scheme.verifier(type("K", (), {"secret": keys}))
    with pytest.raises(SettingsError):
        verifier.check()
    for key in keys or [""]:
        written = key.encode(errors="replace").decode()
        with pytest.raises(SignatureError):
            verifier.verify(github(written) | {"x-key": key}, BODY, NOW)


BAD_FORMS: list[dict[str, Any]] = [
    {"signed": "{timestamp}"},
    {"signed": "{body}{body}"},
    {"signed": "{body}{what}"},
    {"signed": "{timestamp}.{body}"},  # signed, and never sent
    {"form": "t={timestamp},v1={signature}"},  # sent, and not signed
    {"form": "sha256="},
    {"form": "a={signature},b"},
    {"form": "{timestamp}{signature}", "signed": "{timestamp}.{body}", "tolerance": 300.0},
    {"form": "t={timestamp},v1={signature}", "signed": "{timestamp}.{body}"},  # no tolerance
    {"tolerance": 300.0},
    {"tolerance": -1.0, "timestamp": "x-t", "signed": "{timestamp}{body}"},
    {"header": "X-Upper"},
    {"signed": "{id}.{body}"},
    {"hash": "md4"},
]


@pytest.mark.parametrize("changes", BAD_FORMS, ids=str)
def test_a_form_that_cannot_be_or_proves_less_is_refused(changes: dict[str, Any]) -> None:
    plain = Hmac("secret", "x-sig", tolerance=None)
    plain.verifier(Keys()).check()
    with pytest.raises(SettingsError):
        replace(plain, **changes).verifier(Keys()).check()


# A static header


def test_a_static_header_is_the_secret_and_nothing_else() -> None:
    scheme = StaticHeader("secret", "x-key", "Bearer ")
    for key in (KEY, OLD):
        proven = verify(scheme, {"X-Key": f"Bearer {key}"})
        assert (proven, proven.proof) == (Verified(), ("x-key",))
    for odd in (KEY, f"bearer {KEY}", f"Bearer {KEY} ", f"Bearer {KEY}\udcff", "", "é"):
        with pytest.raises(SignatureError, match="wrong x-key"):
            verify(scheme, {"x-key": odd})
    with pytest.raises(SignatureError, match="missing"):
        verify(scheme, {})


def test_the_provider_is_told_the_first_value_of_a_static_header_or_none() -> None:
    class Held:
        secret = ""

    scheme = StaticHeader("secret", "x-key", "Bearer ")
    for held, told in ((f"{KEY} {OLD}", f"Bearer {KEY}"), ("", None), ("weak", None)):
        Held.secret = held
        assert scheme.value(Held()) == told


# Ed25519 with a JWKS

PAIR, NEXT = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def jwks(*pairs: Ed25519PrivateKey) -> bytes:
    found = [pair.public_key().public_bytes_raw() for pair in pairs]
    keys = [
        {"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(k).decode().rstrip("=")}
        for k in found
    ]
    return orjson.dumps({"keys": [{"kty": "RSA", "n": "x"}, *keys]})


def fal(pair: Ed25519PrivateKey = PAIR, stamp: str = STAMP, body: bytes = BODY) -> dict[str, str]:
    digest = hashlib.sha256(body).hexdigest()
    signed = f"req-1\nuser-1\n{stamp}\n{digest}".encode()
    named = {"Request-Id": "req-1", "User-Id": "user-1", "Timestamp": stamp}
    named["Signature"] = pair.sign(signed).hex()
    return {f"X-Fal-Webhook-{name}": value for name, value in named.items()}


class Keyring:
    """A JWKS that counts who asks."""

    def __init__(self, *pairs: Ed25519PrivateKey) -> None:
        self.document: bytes | Exception = jwks(*pairs)
        self.asked: list[str] = []

    async def get(self, url: str) -> bytes:
        self.asked.append(url)
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


def falling() -> Ed25519JwksVerifier:
    verifier = Ed25519Jwks.fal().verifier(None)
    verifier.check()
    return verifier


async def test_keys_are_fetched_for_the_first_signature_and_then_held() -> None:
    verifier, ring = falling(), Keyring(NEXT, PAIR)
    assert isinstance(verifier, FetchesKeys)
    with pytest.raises(UnknownKey):
        verifier.verify(fal(), BODY, NOW)
    await verifier.refresh(ring.get, NOW)
    assert verifier.verify(fal(), BODY, NOW) == Verified("req-1", NOW)
    assert verifier.verify(fal(NEXT), BODY, NOW) == Verified("req-1", NOW)
    assert ring.asked == [FAL_KEYS]
    with pytest.raises(UnknownKey):
        verifier.verify(fal(), BODY + b" ", NOW)


async def test_keys_are_fetched_at_most_once_a_minute() -> None:
    verifier, ring = falling(), Keyring(PAIR)
    for second in range(0, 180, 10):
        await verifier.refresh(ring.get, NOW + timedelta(seconds=second))
    assert len(ring.asked) == 3


async def test_a_new_key_is_known_after_a_minute_at_most() -> None:
    verifier, ring = falling(), Keyring(PAIR)
    await verifier.refresh(ring.get, NOW)
    ring.document = jwks(NEXT)
    await verifier.refresh(ring.get, NOW + timedelta(seconds=61))
    assert verifier.verify(fal(NEXT), BODY, NOW) == Verified("req-1", NOW)
    with pytest.raises(UnknownKey):
        verifier.verify(fal(PAIR), BODY, NOW)


async def test_keys_are_not_believed_for_more_than_a_day() -> None:
    verifier, ring = falling(), Keyring(PAIR)
    await verifier.refresh(ring.get, NOW)
    later = NOW + timedelta(hours=24)
    with pytest.raises(UnknownKey):
        verifier.verify(fal(stamp=str(int(later.timestamp()))), BODY, later)


@pytest.mark.parametrize(
    "document",
    [
        OSError("no route"), b"", b"[]", b'{"keys": 5}', b'{"keys": []}', b'{"keys": [5]}',
        b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "short"}]}',
        b'{"keys": [{"kty": "OKP", "crv": "Ed25519"}]}',
        b'{"keys": [{"kty": "OKP", "crv": "X25519", "x": "' + b"A" * 43 + b'"}]}',
    ],
    ids=str,
)  # fmt: skip
async def test_without_keys_nobody_is_refused_and_nobody_let_in(document: Any) -> None:
    verifier, ring = falling(), Keyring()
    ring.document = document
    for _ in range(2):  # the second is told of the first one's failure, and nobody is asked
        with pytest.raises(KeysUnavailable):
            await verifier.refresh(ring.get, NOW)
        with pytest.raises(UnknownKey):
            verifier.verify(fal(), BODY, NOW)
    assert len(ring.asked) == 1
    ring.document = jwks(PAIR)
    await verifier.refresh(ring.get, NOW + timedelta(seconds=60))
    assert verifier.verify(fal(), BODY, NOW) == Verified("req-1", NOW)


async def test_what_is_malformed_or_old_needs_no_keys_to_be_refused() -> None:
    verifier = falling()
    odd = [
        {"X-Fal-Webhook-Signature": "xyz"},
        {"X-Fal-Webhook-Signature": "ab" * 63},
        {"X-Fal-Webhook-Timestamp": "soon"},
        {"X-Fal-Webhook-Timestamp": str(int(STAMP) - 301)},
        {"X-Fal-Webhook-User-Id": "a\nb"},
        {"X-Fal-Webhook-User-Id": ""},
    ]
    for changes in odd:
        with pytest.raises(SignatureError) as refused:
            verifier.verify(fal() | changes, BODY, NOW)
        assert not isinstance(refused.value, UnknownKey)


@pytest.mark.parametrize(
    "changes",
    [
        {"url": ""}, {"url": "http://keys.example.com/"}, {"url": "https://"},
        {"url": "ftp://127.0.0.1/"}, {"url": "https://[::1"}, {"signed": "{sha256}"},
        {"signed": "{x-fal-webhook-timestamp}"}, {"tolerance": 0.0}, {"header": "A"},
        {"signed": "{x-fal-webhook-timestamp}.{sha256}"},
    ],
    ids=str,
)  # fmt: skip
def test_a_jwks_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        replace(Ed25519Jwks.fal(), **changes).verifier(None).check()


def test_the_url_of_the_keys_may_come_from_the_settings() -> None:
    settings = type("S", (), {"keys_url": "http://127.0.0.1:9/jwks"})
    verifier = Ed25519Jwks.fal("keys_url").verifier(settings)
    verifier.check()
    assert verifier.url == "http://127.0.0.1:9/jwks"


# From configuration


def test_a_scheme_can_be_declared() -> None:
    assert scheme_of({"kind": "github"}, "s") == Hmac.github("s")
    assert scheme_of({"kind": "fal"}) == Ed25519Jwks.fal()
    assert scheme_of({"kind": "fal", "url": "https://k/"}) == Ed25519Jwks.fal("https://k/")
    static = scheme_of({"kind": "static_header", "header": "x-key"})
    assert static == StaticHeader("webhook_secret", "x-key")
    tolerant = scheme_of({"kind": "standard_webhooks", "tolerance": 60})
    assert tolerant.tolerance == 60.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ({}, "no scheme None"),
        ({"kind": "md5"}, "no scheme 'md5'"),
        ({"kind": ["hmac"]}, "no scheme"),
        ({"kind": "github", "header": "x"}, "knows no header"),
        ({"kind": "fal", "url": 7}, "scheme fal: url"),
        ({"kind": "fal", "tolerance": 7}, "knows no tolerance"),
        ({"kind": "hmac"}, "header"),
        ({"kind": "hmac", "header": "x", "secret": "k" * 20}, "knows no secret"),
        ({"kind": "hmac", "header": "x", "encoding": "hexa"}, "encoding"),
        ({"kind": "static_header", "header": 5}, "header"),
    ],
)
def test_a_scheme_declared_wrong_is_refused_by_name(declared: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        scheme_of(declared)
