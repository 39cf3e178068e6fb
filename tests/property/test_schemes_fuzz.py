"""Whatever a stranger sends, each scheme proves a delivery or raises SignatureError."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agentflow import Ed25519Jwks, Hmac, SettingsError, SignatureError, StaticHeader

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
STAMP, BODY, KEY = str(int(NOW.timestamp())), b'{"id": "p1"}', "whsec_0123456789abcdef"


def hexed(signed: str) -> str:
    return hmac.new(KEY.encode(), signed.encode() + BODY, hashlib.sha256).hexdigest()


@dataclass
class Case:
    verifier: Any
    good: dict[str, str]


def with_keys(scheme: Any) -> Any:
    return scheme.verifier(type("K", (), {"secret": KEY}))


def fal() -> Case:
    pair = Ed25519PrivateKey.from_private_bytes(bytes(32))
    x = base64.urlsafe_b64encode(pair.public_key().public_bytes_raw()).decode().rstrip("=")
    document = orjson.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]})

    async def get(url: str) -> bytes:
        return document

    verifier = Ed25519Jwks.fal().verifier(None)
    asyncio.run(verifier.refresh(get, NOW))
    signed = f"r\nu\n{STAMP}\n{hashlib.sha256(BODY).hexdigest()}"
    said = {"request-id": "r", "user-id": "u", "timestamp": STAMP}
    said["signature"] = pair.sign(signed.encode()).hex()
    return Case(verifier, {f"x-fal-webhook-{n}": v for n, v in said.items()})


CASES = {
    "github": Case(
        with_keys(Hmac.github("secret")),
        {"x-hub-signature-256": f"sha256={hexed('')}", "x-github-delivery": "d"},
    ),
    "slack": Case(
        with_keys(Hmac.slack("secret")),
        {
            "x-slack-signature": f"v0={hexed(f'v0:{STAMP}:')}",
            "x-slack-request-timestamp": STAMP,
        },
    ),
    "stripe": Case(
        with_keys(Hmac.stripe("secret")),
        {"stripe-signature": f"t={STAMP},v1={hexed(f'{STAMP}.')}"},
    ),
    "static": Case(with_keys(StaticHeader("secret", "x-key")), {"x-key": KEY}),
    "fal": fal(),
}
anything = st.text(st.characters())  # lone surrogates too, which st.text() leaves out


def near(text: str) -> st.SearchStrategy[str]:
    places = st.integers(0, len(text))
    new = anything | st.text("tv10=, .abcdef\n", max_size=8)
    return st.builds(lambda a, b, n: text[:a] + n + text[b:], places, places, new)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_whatever_is_sent_is_proven_or_refused(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    sent = {n: st.just(v) | near(v) | anything for n, v in case.good.items()}
    headers = data.draw(st.fixed_dictionaries(sent) | st.dictionaries(anything, anything))
    body = data.draw(st.just(BODY) | st.binary())
    genuine = body == BODY and headers == case.good
    refusal: SignatureError | None = None
    try:
        case.verifier.verify(headers, body, NOW)
    except SignatureError as error:
        refusal = error
    if refusal is not None:
        assert not genuine
        assert refusal.__context__ is None
    else:
        assert body == BODY or name == "static"
        key = next(n for n in case.good if "sig" in n or "key" in n)
        mac = case.good[key].rpartition("=")[2]
        assert mac.lower() in headers[key].lower()


@pytest.mark.parametrize("name", CASES)
def test_no_changed_character_is_let_through(name: str) -> None:
    case = CASES[name]
    for header, value in case.good.items():
        if header == "x-github-delivery":  # GitHub does not sign it
            continue
        for place in range(len(value)):
            other = "0" if value[place] != "0" else "1"
            changed = value[:place] + other + value[place + 1 :]
            with pytest.raises(SignatureError):
                case.verifier.verify(case.good | {header: changed}, BODY, NOW)


@given(anything)
def test_a_key_that_is_refused_at_the_start_proves_nothing(key: str) -> None:
    verifier = Hmac.github("secret").verifier(type("K", (), {"secret": [key]}))
    try:
        verifier.check()
    except SettingsError:
        mac = hmac.new(key.encode(errors="replace"), BODY, hashlib.sha256).hexdigest()
        headers = {"x-hub-signature-256": f"sha256={mac}", "x-github-delivery": "d"}
        with pytest.raises(SignatureError):
            verifier.verify(headers, BODY, NOW)
