"""Standard Webhooks: what is accepted, and everything odd that is not.

The oracles are `standardwebhooks` and the OpenAI SDK. They read the real clock, so what goes
through them is signed now; everything else has a clock of its own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
import standardwebhooks
from openai import OpenAI
from starlette.datastructures import Headers

from agentflow.errors import SettingsError, SignatureError, UsageError
from agentflow.webhooks.signatures import (
    MAX_SIGNATURES,
    StandardWebhooksVerifier,
    Verified,
    new_secret,
    sign,
)

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
STAMP = str(int(NOW.timestamp()))
ID = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"
BODY = b'{"id": "p1", "status": "succeeded"}'


def key_of(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()


def mac(secret: bytes, delivery_id: bytes, timestamp: bytes, body: bytes) -> str:
    """The right signature by the letter of the spec, however odd the parts are."""
    content = delivery_id + b"." + timestamp + b"." + body
    return base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()


SECRET = bytes(range(32))
KEY = key_of(SECRET)
OLD_KEY = key_of(bytes(range(100, 124)))
GOOD = mac(SECRET, ID.encode(), STAMP.encode(), BODY)
SCHEME = StandardWebhooksVerifier([KEY])


def delivery(**changes: str) -> dict[str, str]:
    """A good delivery of BODY at NOW, with some headers changed: `signature=…`."""
    parts = {"id": ID, "timestamp": STAMP, "signature": f"v1,{GOOD}"} | changes
    return {f"webhook-{name}": value for name, value in parts.items()}


def refused(headers: object, body: bytes = BODY, scheme: StandardWebhooksVerifier = SCHEME) -> str:
    with pytest.raises(SignatureError) as raised:
        scheme.verify(headers, body, NOW)  # type: ignore[arg-type]
    return raised.value.message


# What is accepted


def test_a_good_delivery_proves_its_id_and_time() -> None:
    assert SCHEME.verify(delivery(), BODY, NOW) == Verified(ID, NOW)


def test_our_headers_are_the_ones_of_the_spec() -> None:
    assert sign(KEY, ID, NOW, BODY) == delivery()


def test_the_openai_sdks_own_example_is_accepted() -> None:
    """From the SDK's tests: a key, a body and a signature none of us computed."""
    scheme = StandardWebhooksVerifier(["whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="])
    body = (
        b'{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", '
        b'"created_at": 1750861210, "type": "response.completed", '
        b'"data": {"id": "resp_123"}}'
    )
    headers = {
        "webhook-id": "wh_685c059ae39c8190af8c71ed1022a24d",
        "webhook-timestamp": "1750861210",
        "webhook-signature": "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY=",
    }
    sent_at = datetime.fromtimestamp(1750861210, UTC)
    assert scheme.verify(headers, body, sent_at).sent_at == sent_at


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_header_names_have_no_case(case: object) -> None:
    headers = {case(name): value for name, value in delivery().items()}  # type: ignore[operator]
    assert SCHEME.verify(headers, BODY, NOW).delivery_id == ID


def test_the_headers_of_a_request_fit() -> None:
    assert SCHEME.verify(Headers(delivery() | {"Host": "x"}), BODY, NOW).delivery_id == ID


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00", b"\x00" * 100_000], ids=len)
def test_a_body_is_bytes_of_any_kind(body: bytes) -> None:
    assert SCHEME.verify(sign(KEY, ID, NOW, body), body, NOW).delivery_id == ID


@pytest.mark.parametrize("size", [24, 25, 26, 32, 64])
def test_a_key_may_leave_out_its_padding(size: int) -> None:
    secret = bytes(range(size))
    scheme = StandardWebhooksVerifier([key_of(secret).rstrip("=")])
    scheme.check()
    assert scheme.verify(sign(key_of(secret), ID, NOW, BODY), BODY, NOW).delivery_id == ID


@pytest.mark.parametrize(
    "signature",
    [
        f"v1,AAAA v1,{GOOD}",
        f"v1,{GOOD} v1,AAAA",
        f"v2,AAAA v1a,hnO3f9T8Ytu9Hw== v1,{GOOD}",
        f"v9,url-safe_too v1,{GOOD}",
        " ".join(["v1,AAAA"] * (MAX_SIGNATURES - 1) + [f"v1,{GOOD}"]),
    ],
)
def test_one_good_signature_among_others_is_enough(signature: str) -> None:
    assert SCHEME.verify(delivery(signature=signature), BODY, NOW).delivery_id == ID


# Both ways with the libraries


@pytest.fixture(scope="module")
def openai_client() -> Iterator[OpenAI]:
    with OpenAI(api_key="none", webhook_secret=KEY, base_url="http://127.0.0.1:9") as client:
        yield client


@pytest.mark.parametrize("body", [BODY, b'{"snow": "\xe2\x98\x83"}\r\n'])
def test_what_we_sign_the_libraries_accept(openai_client: OpenAI, body: bytes) -> None:
    headers = sign(KEY, ID, datetime.now(UTC), body)
    standardwebhooks.Webhook(KEY).verify(body, headers)
    openai_client.webhooks.verify_signature(body, headers)


def test_what_the_library_signs_we_accept() -> None:
    signature = standardwebhooks.Webhook(KEY).sign(ID, NOW, BODY.decode())
    assert SCHEME.verify(delivery(signature=signature), BODY, NOW).sent_at == NOW


def test_what_the_libraries_refuse_we_refuse(openai_client: OpenAI) -> None:
    now = datetime.now(UTC)
    headers = sign(OLD_KEY, ID, now, BODY)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(KEY).verify(BODY, headers)
    with pytest.raises(ValueError, match="does not match"):
        openai_client.webhooks.verify_signature(BODY, headers)
    with pytest.raises(SignatureError, match="no signature matched"):
        SCHEME.verify(headers, BODY, now)


def test_a_fresh_secret_serves_everyone() -> None:
    key = new_secret()
    StandardWebhooksVerifier([key]).check()
    headers = sign(key, ID, datetime.now(UTC), BODY)
    standardwebhooks.Webhook(key).verify(BODY, headers)
    assert len(base64.b64decode(key.removeprefix("whsec_"))) == 32
    assert new_secret() != key


# Signing


def test_the_zone_of_sent_at_does_not_change_what_is_signed() -> None:
    """`standardwebhooks.Webhook.sign` signs five hours off here."""
    there = NOW.astimezone(timezone(timedelta(hours=5)))
    assert sign(KEY, ID, there, BODY) == delivery()


def test_a_fraction_of_a_second_is_dropped() -> None:
    assert sign(KEY, ID, NOW + timedelta(microseconds=999_999), BODY) == delivery()


@pytest.mark.parametrize("delivery_id", ["", "a.b", "a b", "é", "a\n", "\x00", "x" * 256])
def test_an_id_receivers_would_refuse_is_not_signed(delivery_id: str) -> None:
    with pytest.raises(UsageError, match="delivery_id"):
        sign(KEY, delivery_id, NOW, BODY)


@pytest.mark.parametrize(
    "sent_at",
    [
        datetime(2026, 11, 20),  # noqa: DTZ001 - the naive time is the case
        datetime(1969, 12, 31, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
def test_a_time_that_cannot_be_signed_is_refused(sent_at: datetime) -> None:
    with pytest.raises(UsageError, match="sent_at"):
        sign(KEY, ID, sent_at, BODY)


def test_a_weak_key_does_not_sign() -> None:
    with pytest.raises(SettingsError, match="The webhook key is not of 24 to 64 bytes"):
        sign("whsec_", ID, NOW, BODY)


# Rotation


def test_either_key_may_have_signed_while_one_replaces_the_other() -> None:
    both = StandardWebhooksVerifier([KEY, OLD_KEY])
    both.check()
    for key in (KEY, OLD_KEY):
        assert both.verify(sign(key, ID, NOW, BODY), BODY, NOW).delivery_id == ID


def test_a_sender_may_sign_with_both_keys() -> None:
    old, new = (sign(key, ID, NOW, BODY)["webhook-signature"] for key in (OLD_KEY, KEY))
    headers = delivery(signature=f"{new} {old}")
    for keys in ([KEY], [OLD_KEY]):
        assert StandardWebhooksVerifier(keys).verify(headers, BODY, NOW).delivery_id == ID


def test_a_key_taken_away_proves_nothing_more() -> None:
    assert refused(sign(OLD_KEY, ID, NOW, BODY)) == "no signature matched"


# The window


@pytest.mark.parametrize("tolerance", [1.0, 300.0, 86_400.0])
@pytest.mark.parametrize("side", [1, -1])
def test_the_window_is_as_wide_on_both_sides(tolerance: float, side: int) -> None:
    scheme = StandardWebhooksVerifier([KEY], tolerance)
    edge = NOW + side * timedelta(seconds=tolerance)
    assert scheme.verify(delivery(), BODY, edge).sent_at == NOW
    with pytest.raises(SignatureError, match="old" if side > 0 else "future"):
        scheme.verify(delivery(), BODY, edge + side * timedelta(milliseconds=1))


def test_now_may_be_of_any_zone() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=-8)))
    assert SCHEME.verify(delivery(), BODY, there).sent_at == NOW


# What is refused; each delivery is good but for the one thing

ODD_SIGNATURES = {
    "no comma": f"garbage v1,{GOOD}",
    "bare": GOOD,
    "v2": f"v2,{GOOD}",
    "v1a": f"v1a,{GOOD}",
    "V1": f"V1,{GOOD}",
    "v01": f"v01,{GOOD}",
    "v1, twice": f"v1,v1,{GOOD}",
    "third field": f"v1,{GOOD},x",
    "bad base64": "v1,!!!!",
    "bad base64 beside a good one": f"v1,!!!! v1,{GOOD}",
    "a stray character inside": f"v1,{GOOD[:8]}!{GOOD[8:]}",
    "a stray character of base64url": f"v1,{GOOD[:8]}-{GOOD[8:]}",
    "a newline inside": f"v1,{GOOD[:8]}\n{GOOD[8:]}",
    "a newline at the end": f"v1,{GOOD}\n",
    "no padding": f"v1,{GOOD.rstrip('=')}",
    "too much padding": f"v1,{GOOD}=",
    "more after the padding": f"v1,{GOOD}AAAA",
    "another way to write the last byte": f"v1,{GOOD[:-2]}{chr(ord(GOOD[-2]) + 1)}=",
    "in hexadecimal": f"v1,{base64.b64decode(GOOD).hex()}",
    "only the start": f"v1,{GOOD[:20]}",
    "all but the end": f"v1,{GOOD[:-4]}",
    "nothing": "v1,",
    "empty": "",
    "a space": " ",
    "a space before": f" v1,{GOOD}",
    "two spaces": f"v1,AAAA  v1,{GOOD}",
    "a tab between": f"v1,AAAA\tv1,{GOOD}",
    "headers joined by a proxy": f"v1,AAAA, v1,{GOOD}",
    "not ASCII": f"v1,é{GOOD}",
    "not ASCII beside a good one": f"v1,é v1,{GOOD}",
    "a surrogate": f"v1,\udc80{GOOD}",
    "too many": " ".join(["v1,AAAA"] * MAX_SIGNATURES + [f"v1,{GOOD}"]),
    "far too many": f"v1,{GOOD} " * 100_000,
}


@pytest.mark.parametrize("signature", ODD_SIGNATURES.values(), ids=ODD_SIGNATURES)
def test_an_odd_signature_is_refused(signature: str) -> None:
    refused(delivery(signature=signature))


def test_the_odd_last_byte_decodes_to_the_good_signature() -> None:
    odd = ODD_SIGNATURES["another way to write the last byte"].removeprefix("v1,")
    assert base64.b64decode(odd, validate=True) == base64.b64decode(GOOD)


ARABIC = {ord("0") + digit: 0x0660 + digit for digit in range(10)}


@pytest.mark.parametrize(
    "timestamp",
    [
        f"{STAMP}.5",
        f"{STAMP}.0",
        f"+{STAMP}",
        f"-{STAMP}",
        f" {STAMP}",
        f"{STAMP} ",
        f"{STAMP}\n",
        f"0{STAMP}",
        f"{STAMP[:4]}_{STAMP[4:]}",
        f"{float(STAMP):.9e}",
        STAMP.translate(ARABIC),
        STAMP[0] + STAMP[1:].translate(ARABIC),
        "",
        "0",
        "nan",
        "inf",
        "hello",
        "9" * 12,
        "9" * 5000,
        f"{STAMP}000",
        NOW.isoformat(),
    ],
    ids=lambda text: ascii(text)[:24],
)
def test_an_odd_timestamp_is_refused_though_well_signed(timestamp: str) -> None:
    signature = mac(SECRET, ID.encode(), timestamp.encode(), BODY)
    headers = delivery(timestamp=timestamp, signature=f"v1,{signature}")
    assert refused(headers) == "malformed webhook-timestamp"


@pytest.mark.parametrize(
    "delivery_id",
    ["", " ", "a b", "a.b", ".", "é", "☃", "a\x00", "a\n", "\x7f", "\udc80", "x" * 256],
    ids=lambda text: ascii(text)[:24],
)
def test_an_odd_id_is_refused_though_well_signed(delivery_id: str) -> None:
    signed = delivery_id.encode("utf-8", "surrogatepass")
    signature = mac(SECRET, signed, STAMP.encode(), BODY)
    headers = delivery(id=delivery_id, signature=f"v1,{signature}")
    assert refused(headers) == "malformed webhook-id"


def test_one_signature_never_covers_two_deliveries() -> None:
    """`a.<t>` + `<body>` and `a` + `<t>.<body>` are the same bytes to sign."""
    body = f"{STAMP}.{{}}".encode()
    headers = sign(KEY, "a", NOW, body)
    assert refused(headers | {"webhook-id": f"a.{STAMP}"}, b"{}") == "malformed webhook-id"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_every_header_is_needed_once(name: str) -> None:
    headers = delivery()
    value = headers.pop(name)
    assert refused(headers) == f"missing {name}"
    assert refused(headers | {name: value, name.upper(): value}) == f"repeated {name}"
    raw = [(name.encode(), value.encode())] * 2
    raw += [(other.encode(), text.encode()) for other, text in headers.items()]
    assert refused(Headers(raw=raw)) == f"repeated {name}"


def test_a_signature_is_for_one_body_id_and_time() -> None:
    assert refused(delivery(), BODY + b"\n") == "no signature matched"
    assert refused(delivery(id=ID + "x")) == "no signature matched"
    assert refused(delivery(timestamp=str(int(STAMP) + 1))) == "no signature matched"


# Keys

ODD_KEYS = {
    "empty": "",
    "prefix only": "whsec_",
    "decodes to nothing": "whsec_!!!!",
    "only padding": "whsec_====",
    "no prefix": KEY.removeprefix("whsec_"),
    "prefix of another kind": KEY.replace("whsec_", "whpk_"),
    "prefix in capitals": KEY.replace("whsec_", "WHSEC_"),
    "prefix with a version": f"v1,{KEY}",
    "prefix twice": f"whsec_{KEY}",
    "space before": f" {KEY}",
    "newline after": f"{KEY}\n",
    "stray character": f"{KEY[:20]}!{KEY[20:]}",
    "base64url": key_of(b"\xff" * 32).replace("/", "_"),
    "not ASCII": f"whsec_é{KEY.removeprefix('whsec_')}",
    "a surrogate": "whsec_" + "\udc80" * 32,
    "padding inside": KEY[:20] + "=" + KEY[20:],
    "too much padding": f"{KEY}=",
    "part of the padding": key_of(bytes(25))[:-1],
    "impossible length": f"whsec_{'A' * 33}",
    "bits after the last byte": f"{KEY[:-2]}9=",
    "a placeholder": "whsec_...",
    "23 bytes": key_of(bytes(range(23))),
    "65 bytes": key_of(bytes(range(65))),
}


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=ODD_KEYS)
def test_an_odd_key_is_refused_at_start(key: str) -> None:
    with pytest.raises(SettingsError, match="Webhook key 1 of 1 ") as raised:
        StandardWebhooksVerifier([key]).check()
    secret = key.removeprefix("whsec_")
    assert not secret or secret not in str(raised.value)
    with pytest.raises(SettingsError, match="Webhook key 2 of 2 "):
        StandardWebhooksVerifier([KEY, key]).check()


@pytest.mark.parametrize("key", ODD_KEYS.values(), ids=ODD_KEYS)
def test_an_odd_key_proves_nothing_even_unchecked(key: str) -> None:
    """Nor does an empty key, a key read laxly, or its text taken as the secret."""
    text = re.sub("[^A-Za-z0-9+/]", "", key.removeprefix("whsec_"))
    lax = base64.b64decode(text[: len(text) - (len(text) % 4 == 1)] + "==")
    for secret in (b"", lax, key.encode("utf-8", "surrogatepass")):
        signature = mac(secret, ID.encode(), STAMP.encode(), BODY)
        headers = delivery(signature=f"v1,{signature}")
        assert refused(headers, scheme=StandardWebhooksVerifier([key])) == "no signature matched"


@pytest.mark.parametrize(
    ("keys", "fault"), [([], "No webhook key"), ((), "No webhook key"), (KEY, "must be a list")]
)
def test_without_a_list_of_keys_nothing_starts_and_nothing_is_proven(
    keys: list[str], fault: str
) -> None:
    scheme = StandardWebhooksVerifier(keys)
    with pytest.raises(SettingsError, match=fault):
        scheme.check()
    empty = mac(b"", ID.encode(), STAMP.encode(), BODY)
    for signature in (GOOD, empty):
        headers = delivery(signature=f"v1,{signature}")
        assert refused(headers, scheme=scheme) == "no signature matched"


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_window_that_is_none_is_refused_at_start(tolerance: float) -> None:
    with pytest.raises(SettingsError, match="tolerance"):
        StandardWebhooksVerifier([KEY], tolerance).check()


def test_a_window_of_nan_lets_nothing_in() -> None:
    refused(delivery(), scheme=StandardWebhooksVerifier([KEY], float("nan")))


def test_a_scheme_shown_in_a_log_hides_its_keys() -> None:
    assert repr(SCHEME) == "StandardWebhooksVerifier(tolerance=300.0)"
