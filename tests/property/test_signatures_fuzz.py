"""Whatever a stranger sends, a delivery is proven or SignatureError is raised."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
import standardwebhooks
from hypothesis import example, given
from hypothesis import strategies as st

from agentflow.errors import SettingsError, SignatureError
from agentflow.webhooks.signatures import StandardWebhooksVerifier, Verified, sign

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ID, BODY = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", b'{"id": "p1", "status": "succeeded"}'
SECRET = bytes(range(32))
KEY = "whsec_" + base64.b64encode(SECRET).decode()
SCHEME = StandardWebhooksVerifier([KEY])
GOOD = sign(KEY, ID, NOW, BODY)

REFUSALS = {
    *(f"{fault} {name}" for fault in ("missing", "repeated", "malformed") for name in GOOD),
    "old timestamp",
    "timestamp in the future",
    "too many signatures",
    "no signature matched",
}

anything = st.text(st.characters())  # lone surrogates too, which st.text() leaves out
huge = st.builds(
    lambda part, times: part * times,
    st.sampled_from([*GOOD.values(), "9", "=", " ", ",", "v1,", "v1,AAAA ", "é", "\udcff"]),
    st.integers(1_000, 50_000),
)


def near(text: str) -> st.SearchStrategy[str]:
    """`text` with something put into it."""
    places = st.integers(0, len(text))
    return st.builds(
        lambda at, upto, new: text[:at] + new + text[upto:],
        places,
        places,
        anything | st.text("v12a,= .0123456789\n", max_size=8),
    )


def sent(name: str) -> st.SearchStrategy[str]:
    return st.just(GOOD[name]) | near(GOOD[name]) | anything | huge


odd_headers = st.dictionaries(
    st.sampled_from([*GOOD, *(name.title() for name in GOOD)]) | anything, anything | huge
)
likely_headers = st.fixed_dictionaries({name: sent(name) for name in GOOD})
ids = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="."),
    min_size=1,
    max_size=255,
)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(datetime(1970, 1, 3), datetime(5138, 1, 1), timezones=zones)  # noqa: DTZ001
# Much later, the library's float of the instant may round up to the next second.
soon = st.datetimes(datetime(1970, 1, 3), datetime(2100, 1, 1), timezones=zones)  # noqa: DTZ001
keys = st.binary(min_size=24, max_size=64).map(lambda b: "whsec_" + base64.b64encode(b).decode())


@given(
    headers=likely_headers
    | odd_headers
    | st.builds(lambda a, b: a | b, odd_headers, st.just(GOOD)),
    body=st.just(BODY) | st.binary(),
)
def test_whatever_is_sent_is_proven_or_refused_in_known_words(
    headers: dict[str, str], body: bytes
) -> None:
    genuine = body == BODY and headers == GOOD
    refusal: SignatureError | None = None
    try:
        proven = SCHEME.verify(headers, body, NOW)
    except SignatureError as error:
        refusal = error
    if refusal is None:
        assert proven == Verified(ID, NOW)
        assert body == BODY
        # Other signatures may stand beside the good one, and other headers beside the three.
        assert any(GOOD["webhook-signature"] in value for value in headers.values())
    else:
        assert not genuine
        assert refusal.message in REFUSALS
        assert refusal.__context__ is None


@given(ids, instants, st.binary(), keys)
def test_what_is_signed_is_proven(
    delivery_id: str, sent_at: datetime, body: bytes, key: str
) -> None:
    headers = sign(key, delivery_id, sent_at, body)
    proven = StandardWebhooksVerifier([key]).verify(headers, body, sent_at)
    assert proven == Verified(delivery_id, sent_at.replace(microsecond=0))


@given(ids, soon, st.text(st.characters(codec="utf-8")), keys)
def test_signing_agrees_with_the_library(
    delivery_id: str, sent_at: datetime, body: str, key: str
) -> None:
    theirs = standardwebhooks.Webhook(key).sign(delivery_id, sent_at.astimezone(UTC), body)
    assert sign(key, delivery_id, sent_at, body.encode())["webhook-signature"] == theirs


@pytest.mark.parametrize("name", GOOD)
def test_no_flipped_bit_of_a_header_is_let_through(name: str) -> None:
    for place, character in enumerate(GOOD[name]):
        for bit in range(8):
            flipped = chr(ord(character) ^ 1 << bit)
            value = GOOD[name][:place] + flipped + GOOD[name][place + 1 :]
            with pytest.raises(SignatureError):
                SCHEME.verify(GOOD | {name: value}, BODY, NOW)


@given(body=st.binary(min_size=1), data=st.data())
def test_no_flipped_bit_of_a_body_is_let_through(body: bytes, data: st.DataObject) -> None:
    headers = sign(KEY, ID, NOW, body)
    flipped = _flip(body, data.draw(st.integers(0, 8 * len(body) - 1)))
    with pytest.raises(SignatureError, match="no signature matched"):
        SCHEME.verify(headers, flipped, NOW)


@given(st.integers(0, 8 * len(SECRET) - 1))
def test_no_flipped_bit_of_a_key_is_let_through(bit: int) -> None:
    other = StandardWebhooksVerifier(["whsec_" + base64.b64encode(_flip(SECRET, bit)).decode()])
    with pytest.raises(SignatureError, match="no signature matched"):
        other.verify(GOOD, BODY, NOW)


def test_no_flipped_bit_of_a_written_key_is_let_through() -> None:
    for place, character in enumerate(KEY):
        for bit in range(8):
            written = KEY[:place] + chr(ord(character) ^ 1 << bit) + KEY[place + 1 :]
            if written.rstrip("=") == KEY.rstrip("="):
                continue
            with pytest.raises(SignatureError, match="no signature matched"):
                StandardWebhooksVerifier([written]).verify(GOOD, BODY, NOW)


@given(anything | near(KEY) | st.text("AZaz09+/=-_ ").map(lambda text: "whsec_" + text))
@example(KEY)
@example("whsec_")
def test_a_key_that_passes_is_read_as_the_library_reads_it(key: str) -> None:
    scheme = StandardWebhooksVerifier([key])
    try:
        scheme.check()
    except SettingsError:
        with pytest.raises(SettingsError):
            sign(key, ID, NOW, BODY)
        with pytest.raises(SignatureError):
            scheme.verify(GOOD, BODY, NOW)
    else:
        headers = sign(key, ID, NOW, BODY)
        theirs = standardwebhooks.Webhook(key).sign(ID, NOW, BODY.decode())
        assert headers["webhook-signature"] == theirs
        assert scheme.verify(headers, BODY, NOW) == Verified(ID, NOW)


def _flip(text: bytes, bit: int) -> bytes:
    at = bytearray(text)
    at[bit // 8] ^= 1 << bit % 8
    return bytes(at)
