"""SendGrid's words and signatures: pure, without a network."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from agentflow_sendgrid import EventWebhook, Mail, SendGridSettings, fact, provider
from agentflow_sendgrid.events import facts
from agentflow_sendgrid.failures import refusal, wait
from agentflow_sendgrid.signature import SIGNATURE, TIMESTAMP, EventWebhookVerifier
from agentflow_sendgrid.simulator import SendGridSimulator
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentflow import Delivery, Failed, Progressed, SettingsError, SignatureError, Succeeded
from agentflow.core.events import dump_event
from agentflow.webhooks.reading import facts_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BODY = b'[{"event":"delivered"}]\r\n'
SIM = SendGridSimulator(key="SG.x")
MAIL = {"to": "ada@example.com", "sender": "shop@example.com", "subject": "s", "text": "t"}


def verifier(*keys: str) -> EventWebhookVerifier:
    return EventWebhookVerifier(list(keys) or [SIM.public_key], 172_800.0)


def signed(body: bytes = BODY, at: datetime = NOW, *, forged: bool = False) -> dict[str, str]:
    found: dict[str, str] = SIM.sign("x", at, body, forged)
    return {name.lower(): value for name, value in found.items()}


def encoded(key: Any) -> str:
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def test_a_good_signature_says_when_it_was_made() -> None:
    assert verifier().verify(signed(), BODY, NOW).sent_at == NOW


def test_while_keys_are_rotated_either_may_have_signed() -> None:
    other = encoded(ec.generate_private_key(ec.SECP256R1()))
    assert verifier(other, SIM.public_key).verify(signed(), BODY, NOW)
    with pytest.raises(SignatureError):
        verifier(other).verify(signed(), BODY, NOW)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed(forged=True), BODY),
        (signed(), BODY.rstrip()),  # the line's end is signed too
        (signed(), BODY + b" "),
        (signed(), b"\xff\xfe"),
        ({**signed(), TIMESTAMP: "1700000000"}, BODY),
        (signed(at=NOW - timedelta(days=3)), BODY),
        (signed(at=NOW + timedelta(days=3)), BODY),
    ],
)
def test_what_was_not_signed_so_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(SignatureError):
        verifier().verify(headers, body, NOW)


@given(st.text(max_size=300), st.text(max_size=20))
def test_no_header_of_a_stranger_raises_anything_else(signature: str, timestamp: str) -> None:
    for stamp in (timestamp, str(int(NOW.timestamp()))):
        with pytest.raises(SignatureError):
            verifier().verify({SIGNATURE: signature, TIMESTAMP: stamp}, BODY, NOW)


@pytest.mark.parametrize("missing", [SIGNATURE, TIMESTAMP])
def test_both_headers_are_needed_once(missing: str) -> None:
    headers = signed()
    with pytest.raises(SignatureError, match="repeated"):
        verifier().verify({**headers, missing.upper(): "x"}, BODY, NOW)
    del headers[missing]
    with pytest.raises(SignatureError, match="missing"):
        verifier().verify(headers, BODY, NOW)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        "AAAA",
        "not base64!",
        encoded(ec.generate_private_key(ec.SECP384R1())),
        encoded(ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=("none", "short", "zeros", "no base64", "another curve", "another kind"),
)
def test_a_key_that_proves_nothing_is_refused_at_the_start(key: str) -> None:
    settings = SendGridSettings(webhook_public_key=key)
    with pytest.raises(SettingsError):
        EventWebhook().verifier(settings).check()
    with pytest.raises(SignatureError):
        verifier(key or "AAAA").verify(signed(), BODY, NOW)


def event(kind: Any, **more: Any) -> dict[str, Any]:
    about = {"agentflow_token": "tok", "agentflow_to": "ada@example.com"}
    return {"event": kind, "email": "Ada@example.com", "sg_event_id": "e1", **about, **more}


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("processed", Progressed),
        ("deferred", Progressed),
        ("delivered", Succeeded),
        ("bounce", Failed),
        ("dropped", Failed),
        ("open", Progressed),
        ("click", Progressed),
        ("spamreport", Progressed),
        ("account_status_change", type(None)),
        (None, type(None)),
    ],
)
def test_every_event_has_its_fact(kind: Any, state: type) -> None:
    assert isinstance(fact(event(kind)), state)


def test_each_element_of_a_batch_is_read_for_itself() -> None:
    batch = [
        None, 7, "x", {"event": "delivered"}, event("delivered", agentflow_token=7),
        event("delivered", agentflow_token="x" * 999),
        event("delivered", email="copy@example.com"), event("future"), event("delivered"),
    ]  # fmt: skip
    (found,) = facts(Delivery("sendgrid", orjson.dumps(batch)))
    assert (found.token, found.id, found.external_id) == ("tok", "e1", None)


@pytest.mark.parametrize("body", [b"", b"{}", b"7", b"null", b"\xff", b"[" * 10_000])
def test_what_is_no_batch_says_nothing(body: bytes) -> None:
    assert facts(Delivery("sendgrid", body)) == []


STRANGE = (
    b'{"event": "open", "useragent": "\\ud83d"}',  # half of a character
    b'{"event": "open", "useragent": "\xff\xfe"}',
    b'{"event": "open", "useragent": "a\tb\x00"}',
    b'{"event": "open", "n": NaN, "m": 1e999}',
    b'{"event": "open", "n": 7' + b"0" * 5000 + b"}",
    b'{"event": "open", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"event": "open", "cut": "of',
    b'{"event": "open" "comma": 1}',
    b"nonsense",
)


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("about_ours", [False, True])
def test_an_element_that_is_no_json_costs_no_other(strange: bytes, about_ours: bool) -> None:
    """What a reader's mail program calls itself is in the batch, and anybody may write that."""
    if about_ours:
        ours = b'{"agentflow_token": "tok", "agentflow_to": "ada@example.com",'
        strange = strange.replace(b"{", ours + b'"email": "ada@example.com",', 1)
    good = [orjson.dumps(event("delivered", sg_event_id=f"good-{n}")) for n in range(2)]
    body = b"[" + b",\r\n".join([good[0], strange, good[1]]) + b"]\r\n"
    found = facts_of(provider, Delivery("sendgrid", body))
    assert {"good-0", "good-1"} <= {each.id for each in found}
    assert len(found) <= 3


def test_a_word_with_half_a_character_is_kept_without_it() -> None:
    said = event("bounce", reason="x").items()
    body = b"[" + orjson.dumps(dict(said)).replace(b'"x"', b'"no \\ud83d"') + b"]"
    (found,) = facts_of(provider, Delivery("sendgrid", body))
    assert "no ?" in found.event.error.message


@pytest.mark.parametrize("kind", ["delivered", "bounce", "dropped", "deferred", "click"])
def test_no_row_grows_with_what_others_say(kind: str) -> None:
    long = dict.fromkeys(("reason", "response", "url", "status", "type"), "x" * 1_000_000)
    (found,) = facts(Delivery("sendgrid", orjson.dumps([event(kind, timestamp=1e300, **long)])))
    assert len(dump_event(found.event)) < 20_000


VALUES = st.none() | st.booleans() | st.integers(0, 99) | st.text() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from([*event(1), "reason", "response", "url"]), VALUES))
def test_no_element_breaks_the_reading(said: Any) -> None:
    facts(Delivery("sendgrid", orjson.dumps([{**event("bounce"), **said}])))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_input"), (401, "authentication"), (403, "permission"),
        (404, "invalid_input"), (413, "invalid_input"), (429, "rate_limited"),
        (500, "outcome_unknown"), (502, "outcome_unknown"), (503, "outcome_unknown"),
        (408, "outcome_unknown"), (200, "provider_error"), (301, "provider_error"),
    ],
)  # fmt: skip
def test_each_answer_has_its_error(status: int, kind: str) -> None:
    assert refusal(status, b"", {}).kind == kind


def test_an_error_names_the_field_and_the_wait() -> None:
    body = orjson.dumps({"errors": [{"message": "bad", "field": "from"}, 7, {"field": "x"}]})
    assert "from: bad" in refusal(400, body, {}).message
    assert wait({"x-ratelimit-reset": "130"}, 100.0) == 30.0
    assert wait({"x-ratelimit-reset": "soon"}, 100.0) is None
    assert wait({"x-ratelimit-reset": "70"}, 100.0) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": "nobody"}, {"to": "a@b, c@d"}, {"subject": None}, {"text": None},
        {"custom_args": {"agentflow_token": "x"}}, {"options": {"personalizations": []}},
        {"attachments": [{"filename": "x"}]}, {"cc": ["x"]}, {"color": "red"},
    ],
)  # fmt: skip
def test_a_mail_that_cannot_be_sent_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Mail.model_validate(MAIL | wrong)
