"""Permits, taken in one process and by many through Redis: the same rules for both ledgers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from support.patience import PATIENCE

from agentflow.core.limits import Demand, Limit, Option, demand
from agentflow.transport import redis_permits
from agentflow.transport.permits import FRESH, Ledger, LocalLedger, Refused
from agentflow.transport.redis_link import Link, connect
from agentflow.transport.redis_permits import LIMITS, RedisLedger

DATABASES = ()

Make = Callable[..., Any]


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Link]:
    link = connect(redis_url)
    yield link
    await link.aclose()


@pytest_asyncio.fixture(params=["local", "redis"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    if request.param == "local":
        yield LocalLedger(time.monotonic)
        return
    link = connect(request.getfixturevalue("redis_url"))
    made = RedisLedger(link, "w1")
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await link.aclose()


def wanted(*limits: Limit, accounts: tuple[str, ...] = (), values: Any = None) -> Demand:
    """The demand of a call under these limits of its provider."""
    values = values or [None] * len(limits)
    return demand("acme", [("acme", limits)], values, accounts)


async def granted(ledger: Ledger, demand: Demand, count: int, line: str = "l") -> list[str]:
    """The permits among `count` askings."""
    permits = [f"{line}-{n}" for n in range(count)]
    taken = [await ledger.take(line, permit, demand) for permit in permits]
    return [p for p, t in zip(permits, taken, strict=True) if isinstance(t, Option)]


async def taken(ledger: Ledger, demand: Demand, permit: str, line: str = "l") -> Option:
    """A permit that may take a moment: what was said to Redis travels in the background."""
    async with asyncio.timeout(PATIENCE):
        while isinstance(answer := await ledger.take(line, permit, demand), Refused):
            await asyncio.sleep(0.005)
        return answer


# -- calls at once ---------------------------------------------------------------------------------


async def test_no_more_calls_at_once_than_the_limit(ledger: Ledger) -> None:
    assert len(await granted(ledger, wanted(Limit(concurrent=3)), 9)) == 3


async def test_what_is_given_back_is_taken_by_another(ledger: Ledger) -> None:
    one = wanted(Limit(concurrent=1))
    option = await taken(ledger, one, "p1")
    assert isinstance(await ledger.take("l", "p2", one), Refused)
    ledger.give_back("p1", option, used=True)
    await taken(ledger, one, "p3")


async def test_all_bounds_have_room_or_none_is_used_up(ledger: Ledger) -> None:
    wide, narrow = Limit(concurrent=5), Limit(concurrent=1, by="model")
    for_a, for_b = (wanted(wide, narrow, values=[None, model]) for model in "ab")
    assert len(await granted(ledger, for_a, 9, "a")) == 1
    assert len(await granted(ledger, for_b, 9, "b")) == 1
    assert len(await granted(ledger, wanted(wide), 9, "c")) == 3, "refusals used up nothing"


async def test_another_key_is_taken_where_one_has_no_room(ledger: Ledger) -> None:
    both = wanted(Limit(concurrent=2), accounts=("k1", "k2"))
    options = [await ledger.take("l", f"p{n}", both) for n in range(6)]
    used = Counter(o.account for o in options if isinstance(o, Option))
    assert used == {"k1": 2, "k2": 2}


# -- rates -----------------------------------------------------------------------------------------


async def test_no_more_calls_begin_in_any_window_than_the_rate(ledger: Ledger) -> None:
    fast = wanted(Limit(rate="10/second"))
    begun: list[float] = []
    n = 0
    while len(begun) < 25:
        answer = await ledger.take("l", f"p{(n := n + 1)}", fast)
        if isinstance(answer, Refused):
            await asyncio.sleep(min(answer.wait, 0.05))
            continue
        begun.append(time.monotonic())
        ledger.started(f"p{n}", answer)
        ledger.give_back(f"p{n}", answer, used=True)
    most = max(sum(t <= other < t + 0.98 for other in begun) for t in begun)
    assert most <= 10
    assert begun[-1] - begun[0] < PATIENCE, "the rate is used"


async def test_a_permitted_call_counts_until_it_begins(ledger: Ledger) -> None:
    """However long it waits for its grant, what begins then is within the rate."""
    slow = wanted(Limit(rate="1/second"))
    option = await taken(ledger, slow, "p1")
    await asyncio.sleep(1.2)
    assert isinstance(await ledger.take("l", "p2", slow), Refused), "p1 has not begun"
    ledger.started("p1", option)
    began = time.monotonic()
    await taken(ledger, slow, "p3")
    assert time.monotonic() - began > 0.9


async def test_a_call_that_was_not_made_does_not_count(ledger: Ledger) -> None:
    rare = wanted(Limit(rate="1/hour"))
    option = await taken(ledger, rare, "p1")
    ledger.give_back("p1", option, used=False)
    option = await taken(ledger, rare, "p2")
    ledger.started("p2", option)
    ledger.give_back("p2", option, used=True)
    await asyncio.sleep(0.05)
    assert isinstance(await ledger.take("l", "p3", rare), Refused)


async def test_of_several_rates_each_holds(ledger: Ledger) -> None:
    assert len(await granted(ledger, wanted(Limit(rate="5/second;3/minute")), 9)) == 3


# -- pauses ----------------------------------------------------------------------------------------


async def test_a_pause_holds_up_limited_calls_and_others(ledger: Ledger) -> None:
    limited, free = wanted(Limit(concurrent=9)), wanted()
    ledger.pause("acme/-", 0.6)
    assert ledger.paused(free.options[0].pauses[-1]) > 0.3
    await asyncio.sleep(0.05)
    refused = await ledger.take("l", "p1", limited)
    assert isinstance(refused, Refused)
    await asyncio.sleep(0.7)
    assert isinstance(await ledger.take("l", "p2", limited), Option)
    assert ledger.paused("acme/-") == 0


async def test_a_pause_of_one_model_or_key_leaves_the_others_alone(ledger: Ledger) -> None:
    by = Limit(by="model", concurrent=9)
    for_a, for_b = (wanted(by, values=[model], accounts=("k1", "k2")) for model in "ab")
    ledger.pause("acme/k1/a", 60)
    await asyncio.sleep(0.05)
    assert {(await taken(ledger, for_a, f"a{n}")).account for n in range(6)} == {"k2"}
    assert {(await taken(ledger, for_b, f"b{n}")).account for n in range(9)} == {"k1", "k2"}


async def test_no_pause_is_longer_than_it_may_be(ledger: Ledger) -> None:
    ledger.pause("acme/-", 86_400)
    assert 299 < ledger.paused("acme/-") <= 300


async def test_a_shorter_pause_does_not_end_a_longer_one(ledger: Ledger) -> None:
    ledger.pause("acme/-", 60)
    ledger.pause("acme/-", 0.1)
    assert ledger.paused("acme/-") > 50


# -- who is first ----------------------------------------------------------------------------------


async def test_who_asked_first_is_served_first(ledger: Ledger) -> None:
    one = wanted(Limit(concurrent=1))
    option = await taken(ledger, one, "p0", "greedy")
    assert isinstance(await ledger.take("patient", "p1", one), Refused)
    ledger.give_back("p0", option, used=True)
    await asyncio.sleep(0.05)
    assert isinstance(await ledger.take("greedy", "p2", one), Refused), "it comes after"
    assert isinstance(await ledger.take("patient", "p3", one), Option)


async def test_who_does_not_ask_any_more_keeps_nobody_waiting(ledger: Ledger) -> None:
    one = wanted(Limit(concurrent=1))
    option = await taken(ledger, one, "p0")
    await ledger.take("gone", "p1", one)
    ledger.give_back("p0", option, used=True)
    await asyncio.sleep(FRESH + 0.1)
    assert isinstance(await ledger.take("l", "p2", one), Option)


async def test_a_line_held_up_elsewhere_lets_others_pass(ledger: Ledger) -> None:
    wide, narrow = Limit(concurrent=2), Limit(concurrent=1, by="model")
    both = wanted(wide, narrow, values=[None, "a"])
    await taken(ledger, both, "p0", "a")
    assert isinstance(await ledger.take("a", "p1", both), Refused)
    assert isinstance(await ledger.take("b", "p2", wanted(wide)), Option)


async def test_a_line_that_is_first_is_told_when_there_is_room(redis_url: str) -> None:
    told: list[str | None] = []
    local = LocalLedger(time.monotonic)
    local.freed = told.append
    one = wanted(Limit(concurrent=1))
    option = await taken(local, one, "p0")
    local.give_back("p0", option, used=True)
    assert told == [None]


# -- between workers -------------------------------------------------------------------------------


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> float:
    """Leases of a second."""
    monkeypatch.setattr(redis_permits, "LEASE", 1.0)
    return 1.0


async def test_who_is_first_in_the_queue_hears_of_it_where_it_hears_the_writers(
    redis: Link,
) -> None:
    mine, other = RedisLedger(redis, "w1"), RedisLedger(redis, "w2")
    one = wanted(Limit(concurrent=1))
    option = await taken(mine, one, "p0")
    assert isinstance(await other.take("acme|x", "p1", one), Refused)
    mine.give_back("p0", option, used=True)
    await mine.flush()
    assert await redis.lpop("agentflow:replies:w2") == b'[["freed","acme|x"]]'
    assert await redis.exists("agentflow:replies:w1") == 0


async def test_a_worker_that_is_silent_loses_its_leases(redis: Link, brief: float) -> None:
    dead, living = RedisLedger(redis, "w1"), RedisLedger(redis, "w2")
    one = wanted(Limit(concurrent=1))
    await taken(dead, one, "p0")
    assert isinstance(await living.take("l", "p1", one), Refused)
    await asyncio.sleep(brief + 0.1)
    assert isinstance(await living.take("l", "p2", one), Option)


async def test_of_a_limit_that_others_use_the_dead_worker_s_part_is_free_again(
    redis: Link, brief: float
) -> None:
    dead, living = RedisLedger(redis, "w1"), RedisLedger(redis, "w2")
    running = asyncio.create_task(living.run())
    two = wanted(Limit(concurrent=2))
    await taken(dead, two, "p0")
    await taken(living, two, "p1")
    await asyncio.sleep(brief + 0.3)
    assert len(await granted(living, two, 5)) == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_worker_that_lives_keeps_its_leases(redis: Link, brief: float) -> None:
    one, two = RedisLedger(redis, "w1"), RedisLedger(redis, "w2")
    running = asyncio.create_task(one.run())
    only = wanted(Limit(concurrent=1))
    await taken(one, only, "p0")
    for n in range(20):
        await asyncio.sleep(brief / 8)
        assert isinstance(await two.take("l", f"p{n}", only), Refused)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_leases_that_a_flush_has_lost_come_back(redis: Link, brief: float) -> None:
    one, two = RedisLedger(redis, "w1"), RedisLedger(redis, "w2")
    running = asyncio.create_task(one.run())
    only = wanted(Limit(concurrent=1))
    await taken(one, only, "p0")
    await redis.flushall()
    await asyncio.sleep(brief / 2)
    assert isinstance(await two.take("l", "p1", only), Refused)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_others_learn_of_a_pause(redis: Link) -> None:
    one, two = RedisLedger(redis, "w1"), RedisLedger(redis, "w2")
    running = [asyncio.create_task(each.run()) for each in (one, two)]
    one.pause("acme/-", 30)
    async with asyncio.timeout(PATIENCE):
        while not two.paused("acme/-") > 25:
            await asyncio.sleep(0.02)
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_nothing_is_left_in_redis_of_calls_that_are_over(redis: Link) -> None:
    ledger = RedisLedger(redis, "w1")
    both = wanted(Limit(concurrent=2, rate="9/second"))
    option = await taken(ledger, both, "p0")
    ledger.started("p0", option)
    ledger.give_back("p0", option, used=True)
    await ledger.flush()
    left = [key.decode() for key in await redis.keys(f"{LIMITS}*")]
    assert left == [f"{LIMITS}calls:acme/-/0/"]
    assert 0 < await redis.ttl(left[0]) <= 15


async def test_while_redis_is_away_nobody_is_admitted(redis: Link) -> None:
    away = RedisLedger(connect("redis://127.0.0.1:1/0"), "w1")
    assert isinstance(await away.take("l", "p0", wanted(Limit(concurrent=1))), Refused)
