"""Keys, principals and limits, without a server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from agentflow.errors import SettingsError, StoreUnavailable
from agentflow.settings import load_settings
from agentflow.store.keys import Key, digest, key_id, new_key
from agentflow.web.auth import HERE, Authenticator, Principal, address_of, presented_key
from agentflow.web.limiting import Backlog, Misses, RateLimits, parsed

NOW = datetime(2026, 11, 24, tzinfo=UTC)


class Keys:
    """A table of keys that counts the questions."""

    def __init__(self) -> None:
        self.rows: dict[str, Key] = {}
        self.asked: list[str] = []
        self.away = False

    def make(self, scope: str = "read", **more: Any) -> str:
        id, key = new_key()
        self.rows[id] = Key(id, "t", "x", scope, digest(key), NOW, **more)
        return key

    async def find(self, id: str) -> Key | None:
        self.asked.append(id)
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable
        return self.rows.get(id)


async def refused(auth: Authenticator, key: str, address: str = "a", now: datetime = NOW) -> int:
    with pytest.raises(HTTPException) as refusal:
        await auth.principal(key, address, now)
    return refusal.value.status_code


# -- keys --------------------------------------------------------------------------------------


def test_a_key_names_its_row_and_nothing_of_its_secret_is_stored() -> None:
    id, key = new_key()
    assert key_id(key) == id
    assert key.startswith(f"af_{id}_")
    row = Key(id, "t", "x", "read", digest(key), NOW)
    assert key.rpartition("_")[2] not in repr(row)
    assert row.opens(key, NOW)
    assert not row.opens(key[:-1] + ("a" if key[-1] != "a" else "b"), NOW)
    assert len({new_key()[1] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "odd",
    ["", "af_", "af__", "Bearer", "af_short_" + "a" * 43, "af_" + "a" * 12 + "_", "sk-123",
     "af_" + "A" * 12 + "_" + "a" * 43, "af_" + "a" * 12 + "_" + "a" * 65,
     "af_" + "a" * 12 + "_" + "ä" * 43, "af_" + "a" * 12 + "_" + "a" * 43 + "\n",
     "af_" + "a" * 17 + "_" + "a" * 43, "XX_" + "a" * 12 + "_" + "a" * 43],
)  # fmt: skip
async def test_what_is_no_key_costs_no_question(odd: str) -> None:
    keys = Keys()
    assert await refused(Authenticator(keys.find), odd) == 401
    assert keys.asked == []


async def test_a_burst_costs_one_question_and_a_revocation_takes_two_seconds() -> None:
    keys = Keys()
    auth, key = Authenticator(keys.find), keys.make("write")
    found = await asyncio.gather(*(auth.principal(key, "a", NOW) for _ in range(50)))
    id = key_id(key) or ""
    assert set(found) == {Principal("t", "write", id)}
    assert keys.asked == [id]
    keys.rows[id] = Key(id, "t", "x", "write", digest(key), NOW, revoked_at=NOW)
    await auth.principal(key, "a", NOW + timedelta(seconds=1.9))
    assert await refused(auth, key, now=NOW + timedelta(seconds=2)) == 401
    assert keys.asked == [id, id]


async def test_an_expiry_counts_at_once() -> None:
    keys = Keys()
    auth, key = Authenticator(keys.find), keys.make(expires_at=NOW + timedelta(seconds=1))
    await auth.principal(key, "a", NOW)
    assert await refused(auth, key, now=NOW + timedelta(seconds=1)) == 401


async def test_a_wrong_secret_opens_nothing_and_costs_nothing_more() -> None:
    keys = Keys()
    auth, key = Authenticator(keys.find), keys.make()
    await auth.principal(key, "a", NOW)
    wrong = f"af_{key_id(key)}_{'x' * 43}"
    assert {await refused(auth, wrong) for _ in range(200)} == {401}
    assert len(keys.asked) == 1


async def test_a_row_with_a_scope_there_is_not_opens_nothing() -> None:
    keys = Keys()
    assert await refused(Authenticator(keys.find), keys.make("root")) == 401


async def test_unknown_keys_are_limited_by_address_and_lock_nobody_else_out() -> None:
    keys = Keys()
    auth, good, late = Authenticator(keys.find), keys.make(), keys.make()
    await auth.principal(good, "a", NOW)
    said = [await refused(auth, new_key()[1]) for _ in range(Misses.ALLOWED + 40)]
    assert said == [401] * Misses.ALLOWED + [429] * 40
    assert len(keys.asked) == 1 + Misses.ALLOWED
    later = NOW + timedelta(seconds=10)
    assert (await auth.principal(good, "a", later)).tenant == "t", "it was seen before"
    assert (await auth.principal(late, "b", later)).tenant == "t", "another address"
    assert await refused(auth, new_key()[1], now=NOW + timedelta(seconds=61)) == 401
    assert len(auth._seen) == 2, "nothing is kept of unknown keys"


async def test_good_keys_seen_for_the_first_time_are_no_misses() -> None:
    keys = Keys()
    auth = Authenticator(keys.find)
    many = [keys.make() for _ in range(3 * Misses.ALLOWED)]
    for key in many:
        await auth.principal(key, "a", NOW)


async def test_a_store_that_is_away_is_said_and_is_nobodys_miss() -> None:
    keys = Keys()
    auth, key = Authenticator(keys.find), keys.make()
    keys.away = True
    for _ in range(2 * Misses.ALLOWED):
        with pytest.raises(StoreUnavailable):
            await auth.principal(key, "a", NOW)
    keys.away = False
    assert (await auth.principal(key, "a", NOW)).tenant == "t"


async def test_who_goes_away_takes_nobody_with_it() -> None:
    keys = Keys()
    auth, key = Authenticator(keys.find), keys.make()
    first = asyncio.create_task(auth.principal(key, "a", NOW))
    second = asyncio.create_task(auth.principal(key, "a", NOW))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).tenant == "t"


def test_addresses_are_forgotten_before_they_fill_the_memory() -> None:
    misses = Misses()
    for n in range(Misses.ADDRESSES + 500):
        misses.count(str(n), NOW)
    assert len(misses._counted) == Misses.ADDRESSES


# -- who asks ----------------------------------------------------------------------------------

OURS = new_key()[1]


@pytest.mark.parametrize(
    ("headers", "required", "found"),
    [
        ({"authorization": f"Bearer {OURS}"}, True, OURS),
        ({"authorization": f"bearer   {OURS} "}, True, OURS),
        ({"x-api-key": OURS}, True, OURS),
        ({"authorization": "Basic dTpw", "x-api-key": OURS}, True, OURS),
        ({"authorization": "Bearer a.jwt", "x-api-key": OURS}, False, OURS),
        ({"authorization": "Bearer a.jwt"}, True, "a.jwt"),
        ({"authorization": "Bearer a.jwt"}, False, None),
        ({"x-api-key": "else"}, False, None),
        ({}, False, None),
    ],
    ids=range(9),
)
def test_the_key_is_found_where_it_may_stand(
    headers: dict[str, str], required: bool, found: str | None
) -> None:
    assert presented_key(Headers(headers), required=required) == found


@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic dTpw"}, {"x-api-key": " "}])
def test_a_required_key_that_is_missing_is_asked_for(headers: dict[str, str]) -> None:
    with pytest.raises(HTTPException) as refusal:
        presented_key(Headers(headers), required=True)
    assert refusal.value.status_code == 401
    assert refusal.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("has", ["read", "write", "admin"])
@pytest.mark.parametrize("needs", ["read", "write", "admin"])
def test_scopes_are_ordered_and_admin_is_the_default_tenants(has: str, needs: str) -> None:
    order = ["read", "write", "admin"]
    for tenant in ("default", "other"):
        allowed = order.index(has) >= order.index(needs)
        if allowed and (needs != "admin" or tenant == "default"):
            Principal(tenant, has).require(needs)
            continue
        with pytest.raises(HTTPException) as refusal:
            Principal(tenant, has).require(needs)
        assert refusal.value.status_code == 403
    assert HERE.operator


@pytest.mark.parametrize(
    ("client", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        (None, "unknown"),
    ],
)
def test_one_site_is_one_address(client: str | None, address: str) -> None:
    assert address_of(client) == address


# -- limits ------------------------------------------------------------------------------------


async def test_a_rate_is_counted_by_caller_and_the_shortest_window_first() -> None:
    rates = RateLimits()
    assert [limit.amount for limit in parsed("5/hour;2/minute")] == [2, 5]
    for _ in range(2):
        await rates.check("2/minute;5/hour", "a")
    for _ in range(10):
        with pytest.raises(HTTPException) as refusal:
            await rates.check("2/minute;5/hour", "a")
        assert refusal.value.status_code == 429
        assert 1 <= int((refusal.value.headers or {})["Retry-After"]) <= 60
    await rates.check("2/minute;5/hour", "b")
    await rates.check("5/hour", "a")  # what the minute refused used up nothing of the hour
    await rates.close()


async def test_without_its_redis_a_rate_lets_everybody_through() -> None:
    rates = RateLimits("redis://127.0.0.1:1/0")
    for _ in range(5):
        await rates.check("1/hour", "a")
    await rates.close()


async def test_a_full_backlog_refuses_and_is_counted_once_for_all() -> None:
    counted: list[tuple[str, int]] = []
    waiting = {"a": 2, "b": 1}

    async def count(tenant: str, most: int) -> int:
        counted.append((tenant, most))
        await asyncio.sleep(0)
        return waiting[tenant]

    backlog = Backlog(count)
    for _ in range(3):
        with pytest.raises(HTTPException) as refusal:
            await backlog.check("a", 2)
        assert refusal.value.status_code == 503
        assert int((refusal.value.headers or {})["Retry-After"]) > 0
    await asyncio.gather(*(backlog.check("b", 2) for _ in range(50)))
    assert counted == [("a", 2), ("b", 2)]
    waiting["b"] = 2
    backlog._until.clear()  # a second later
    with pytest.raises(HTTPException):
        await backlog.check("b", 2)


# -- settings ----------------------------------------------------------------------------------


def test_only_with_keys_may_strangers_come_in() -> None:
    with pytest.raises(SettingsError, match="agentflow keys create"):
        load_settings(host="0.0.0.0")
    with pytest.raises(SettingsError, match="agentflow keys create"):
        load_settings(host="0.0.0.0", require_keys=False)
    assert load_settings(host="0.0.0.0", require_keys=True).require_keys


@pytest.mark.parametrize("rate", ["x", "5", "5/fortnight", "/second", "5 per"])
def test_a_rate_that_is_none_is_refused_by_name(rate: str) -> None:
    with pytest.raises(SettingsError, match="AGENTFLOW_RATE_LIMIT"):
        load_settings(rate_limit=rate)


def test_an_empty_rate_is_off() -> None:
    assert load_settings(rate_limit="").rate_limit is None
    assert load_settings(rate_limit="100/second;2000/minute").rate_limit
