"""What workers and writers say to each other over Redis, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
import pytest_asyncio
from support.patience import PATIENCE, until
from support.proxy import Proxy
from support.servers import RedisServer
from support.talking import GRANTED, Talk, claim, job, report, stopped, talking

from agentflow.transport import redis_conversation
from agentflow.transport.bus import Bus
from agentflow.transport.conversation import Beat, Denied
from agentflow.transport.live import Limits
from agentflow.transport.redis import RedisTransport
from agentflow.transport.redis_conversation import RedisHeard, RedisWorkerSide
from agentflow.transport.redis_link import EVENTS, Link, replies
from agentflow.transport.wire import dump_said, load_said
from agentflow.types import JobId

LIMITS = Limits(job=1000, total=1000, keep=1.0)

DATABASES = ()


@pytest_asyncio.fixture
async def talk(redis_url: str) -> AsyncIterator[Talk]:
    async with talking(redis_url) as made:
        yield made


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_conversation, "AGAIN", 0.2)
    monkeypatch.setattr(redis_conversation, "IDLE", 0.6)
    monkeypatch.setattr(redis_conversation, "BLOCK", 0.2)


async def within(work: Any, seconds: float = PATIENCE) -> Any:
    async with asyncio.timeout(seconds):
        return await work


# -- said and answered -----------------------------------------------------------------------------


async def test_a_claim_and_a_report_are_answered(talk: Talk) -> None:
    writer, worker = await talk.writer(), talk.worker()
    assert await within(worker.claim(claim())) == GRANTED
    await within(worker.report(report()))
    assert writer.heard == [claim(), report()]
    await until(lambda: _is(talk.entries(), 0))


async def _is(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_a_claim_is_denied_with_its_reason(talk: Talk) -> None:
    writer, worker = await talk.writer(), talk.worker()
    writer.denies = True
    assert await within(worker.claim(claim())) == Denied("queued")


async def test_what_was_said_before_there_was_a_writer_is_answered(talk: Talk) -> None:
    asking = talk.spawn(talk.worker().claim(claim()))
    await until(lambda: _is(talk.entries(), 1))
    await talk.writer()
    assert await within(asking) == GRANTED


async def test_the_same_thing_said_twice_is_one_question(talk: Talk) -> None:
    writer, worker = await talk.writer(), talk.worker()
    answers = await within(asyncio.gather(worker.claim(claim()), worker.claim(claim())))
    assert answers == [GRANTED, GRANTED]
    assert writer.heard == [claim()]


async def test_who_stops_waiting_leaves_the_question_to_who_still_waits(talk: Talk) -> None:
    worker = talk.worker()
    leaving, staying = (asyncio.create_task(worker.claim(claim())) for _ in range(2))
    await until(lambda: _is(talk.entries(), 1))
    await stopped(leaving)
    await talk.writer()
    assert await within(staying) == GRANTED


async def test_many_things_go_together_and_all_are_answered(talk: Talk) -> None:
    worker = talk.worker()
    asking = talk.spawn(_all(worker, 500))
    await until(lambda: _is(talk.entries(), 10))
    writer = await talk.writer()
    await within(asking)
    assert len(writer.heard) == 500
    assert await talk.added() == 10
    await until(lambda: _is(talk.entries(), 0))


async def _all(worker: RedisWorkerSide, number: int) -> None:
    await asyncio.gather(*(worker.claim(claim(n)) for n in range(number)))


async def test_a_reader_far_ahead_of_its_writer_leaves_the_rest_in_redis(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_conversation, "AHEAD", 100)
    monkeypatch.setattr(redis_conversation, "PACK", 1)
    worker = talk.worker()
    asking = talk.spawn(_all(worker, 400))
    await until(lambda: _is(talk.entries(), 400))
    writer = await talk.writer()
    writer.mute = True
    await until(lambda: not writer.side.empty)
    await asyncio.sleep(0.3)
    assert len(writer.side._heard) <= 200
    writer.mute = False
    writer.side.bell.set()
    await within(asking)


async def test_beats_carry_all_attempts_and_the_newest_is_enough(talk: Talk) -> None:
    worker = RedisWorkerSide(talk.link(), "w1")
    worker.beat("w1", [(job(1), 1)])
    worker.beat("w1", [(job(1), 1), (job(2), 3)])
    talk.spawn(worker.run())
    writer = await talk.writer()
    await until(lambda: writer.heard)
    assert writer.heard == [Beat("w1", [(job(1), 1), (job(2), 3)])]
    await until(lambda: _is(talk.entries(), 0))


async def test_only_the_worker_that_holds_an_attempt_hears_that_it_is_to_stop(talk: Talk) -> None:
    writer = await talk.writer()
    stops: dict[str, list[tuple[str, int]]] = {"w1": [], "w2": []}
    for name, heard in stops.items():
        talk.worker(name).stop = lambda job, attempt, heard=heard: heard.append((job, attempt))  # type: ignore[misc]
    writer.side.stop_attempt("w2", job(), 3)
    await writer.side.flush()
    await until(lambda: stops["w2"])
    assert stops == {"w1": [], "w2": [(job(), 3)]}


async def test_a_ring_wakes_a_writer_and_leaves_nothing_behind(talk: Talk) -> None:
    writer = await talk.writer()
    await talk.redis.xadd(EVENTS, {"said": b"[]"})
    await until(lambda: _is(talk.entries(), 0))
    assert writer.heard == []


async def test_every_web_process_is_told_what_changed(redis_url: str, talk: Talk) -> None:
    told: list[list[JobId]] = [[], []]
    async with AsyncExitStack() as stack:
        for each in told:
            bus = Bus()
            bus.watchers.append(each.extend)
            web = RedisTransport(redis_url, "web", ["fake"], bus, lambda _, __: 0, LIMITS)
            await web.start(frozenset({"web"}))
            stack.push_async_callback(web.stop)
        await until(lambda: _is(_subscribers(talk.redis), 2))
        writer = await talk.writer()
        writer.side.tell([job(1), job(2)])
        await writer.side.flush()
        await until(lambda: all(told))
        assert told == [[job(1), job(2)]] * 2


async def _subscribers(redis: Link) -> int:
    [(_, number)] = await redis.pubsub_numsub("agentflow:told")
    return int(number)


# -- lost and said again ---------------------------------------------------------------------------


async def test_an_answer_that_was_lost_is_asked_for_and_given_again(talk: Talk) -> None:
    writer = await talk.writer()
    worker = RedisWorkerSide(talk.link(), "w1")
    asking = asyncio.create_task(worker.claim(claim()))
    saying = talk.spawn(worker._send())
    await until(lambda: _is(talk.redis.llen(replies("w1")), 1))
    await stopped(saying)
    await talk.redis.delete(replies("w1"))
    talk.spawn(worker.run())
    assert await within(asking) == GRANTED
    assert writer.heard == [claim(), claim()]


async def lose_entry(redis: Link) -> None:
    await redis.xtrim(EVENTS, maxlen=0, approximate=False)


async def lose_stream(redis: Link) -> None:
    await redis.delete(EVENTS)


async def lose_all(redis: Link) -> None:
    await redis.flushall()


@pytest.mark.parametrize("lose", [lose_entry, lose_stream, lose_all])
async def test_what_was_lost_before_it_was_read_is_said_again(talk: Talk, lose: Any) -> None:
    asking = talk.spawn(talk.worker().claim(claim()))
    await until(lambda: _is(talk.entries(), 1))
    await lose(talk.redis)
    await until(lambda: _is(talk.entries(), 1))
    await talk.writer()
    assert await within(asking) == GRANTED


@pytest.mark.parametrize("lose", [lose_entry, lose_stream, lose_all])
async def test_a_writer_goes_on_hearing_whatever_is_deleted(talk: Talk, lose: Any) -> None:
    await talk.writer()
    worker = talk.worker()
    for n in range(3):
        assert await within(worker.claim(claim(n))) == GRANTED
        await lose(talk.redis)


async def test_nothing_is_said_again_while_it_lies_there(talk: Talk) -> None:
    writer = await talk.writer()
    writer.mute = True
    asking = talk.spawn(talk.worker().claim(claim()))
    await until(lambda: not writer.side.empty)
    await asyncio.sleep(0.9)
    assert await talk.added() == 1
    writer.mute = False
    writer.side.bell.set()
    assert await within(asking) == GRANTED
    assert writer.heard == [claim()]


async def test_what_a_writer_that_cannot_write_has_in_hand_another_answers(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its link to the database is cut; it goes on reading, and must not keep what it read."""
    monkeypatch.setattr(redis_conversation, "STUCK", 0.2)
    stuck = await talk.writer("stuck")
    stuck.mute = True
    worker = talk.worker()
    first = talk.spawn(worker.report(report(1, "a")))
    await until(lambda: not stuck.side.empty)
    await talk.writer("well")
    await within(first)
    await within(worker.report(report(2, "b")))


async def test_what_a_dead_writer_had_in_hand_another_answers(talk: Talk) -> None:
    dead = await talk.writer("dead")
    dead.mute = True
    asking = talk.spawn(_all(talk.worker(), 120))
    await until(lambda: _is(talk.redis.xlen(EVENTS), 3))
    await until(lambda: len(dead.side._heard) == 120)
    assert dead.reading is not None
    await stopped(dead.reading)
    writer = await talk.writer("writer2")
    await within(asking)
    assert len(writer.heard) == 120
    await until(lambda: _is(talk.entries(), 0))


async def test_a_slow_writer_hears_once_what_it_has_in_hand(talk: Talk) -> None:
    writer = await talk.writer()
    writer.mute = True
    asking = talk.spawn(talk.worker().claim(claim()))
    await until(lambda: not writer.side.empty)
    await asyncio.sleep(1.0)  # longer than it takes to be taken for dead
    await writer.turn()
    assert await within(asking) == GRANTED
    assert writer.heard == [claim()]


async def test_answers_that_cannot_be_sent_are_given_later(
    talk: Talk, redis_server: RedisServer
) -> None:
    async with Proxy("127.0.0.1", redis_server.port) as proxy:
        writer = await talk.writer(url=f"redis://127.0.0.1:{proxy.port}/0")
        writer.mute = True
        asking = talk.spawn(talk.worker().claim(claim()))
        await until(lambda: not writer.side.empty)
        proxy.cut()
        await writer.turn()
        proxy.heal()
        writer.mute = False
        assert await within(asking) == GRANTED


# -- words of another version ----------------------------------------------------------------------


NEWER = {"kind": "report", "id": "out:9", "source": "worker", "at": "2026-01-31T12:00:00Z",
         "job": job(9), "event": "teleported", "fields": {}}  # fmt: skip


async def test_what_is_not_understood_keeps_its_neighbours_from_nothing(talk: Talk) -> None:
    """Its sender is not told yes, and keeps it."""
    said = [dump_said(claim(1)), NEWER, {"kind": "dance"}, 7, None, dump_said(claim(2))]
    await talk.redis.xadd(EVENTS, {"from": "w1", "said": orjson.dumps(said)})
    writer = await talk.writer()
    await until(lambda: _is(talk.entries(), 0))
    assert writer.heard == [claim(1), claim(2)]
    [packed] = await talk.redis.lrange(replies("w1"), 0, -1)
    assert [key for _, key, _ in orjson.loads(packed)] == [
        f"{job(1)}/claim/nonce_1",
        f"{job(2)}/claim/nonce_2",
    ]


async def test_what_nobody_understood_is_said_until_somebody_does(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = True

    def load(said: Any) -> Any:
        if old and said["kind"] == "report":
            raise ValueError("no event is called that")
        return load_said(said)

    monkeypatch.setattr(redis_conversation, "load_said", load)
    writer, worker = await talk.writer(), talk.worker()
    reporting = talk.spawn(worker.report(report()))
    assert await within(worker.claim(claim())) == GRANTED
    assert not reporting.done()
    old = False
    await within(reporting)
    assert writer.heard == [claim(), report()]


@pytest.mark.parametrize("fields", [{"said": b"no json"}, {"said": b"7"}, {"x": b"y"},
                                    {"from": b"\xff", "said": b"[1]"}])  # fmt: skip
async def test_an_entry_of_nonsense_stops_no_writer(talk: Talk, fields: Any) -> None:
    await talk.redis.xadd(EVENTS, fields)
    await talk.writer()
    assert await within(talk.worker().claim(claim())) == GRANTED
    await until(lambda: _is(talk.entries(), 0))


@pytest.mark.parametrize(
    "told",
    [b"no json", b"7", b"[7, [], null]", b'[["dance"]]', b'[["stop"]]',
     b'[["answer", "%s/claim/nonce_1", {"granted": [1]}]]' % job().encode()],
)  # fmt: skip
async def test_an_answer_of_nonsense_stops_no_worker(talk: Talk, told: bytes) -> None:
    worker = talk.worker()
    asking = talk.spawn(worker.claim(claim()))
    await until(lambda: _is(talk.entries(), 1))
    await talk.redis.rpush(replies("w1"), told)
    await until(lambda: _is(talk.redis.llen(replies("w1")), 0))
    await talk.writer()
    assert await within(asking) == GRANTED


# -- how long ago everything said had been read ----------------------------------------------------


async def test_all_is_heard_when_all_is_answered(talk: Talk) -> None:
    writer = await talk.writer()
    assert await writer.side.heard_until() == 0
    await within(talk.worker().claim(claim()))
    assert await writer.side.heard_until() == 0


async def test_what_is_not_yet_taken_is_not_heard(talk: Talk) -> None:
    writer = await talk.writer()
    writer.mute = True
    talk.worker().beat("w1", [])
    await until(lambda: not writer.side.empty)
    await asyncio.sleep(0.3)
    age = await writer.side.heard_until()
    assert age is not None
    assert 0.25 < age < PATIENCE


async def test_what_is_of_this_turn_is_heard(talk: Talk) -> None:
    writer = await talk.writer()
    writer.mute = True
    talk.worker().beat("w1", [])
    await until(lambda: not writer.side.empty)
    [heard] = writer.side.take(10)
    assert await writer.side.heard_until() == 0
    writer.side.give_back([heard])
    assert (await writer.side.heard_until() or 0) > 0


async def test_an_entry_is_heard_when_the_last_thing_in_it_is_taken(talk: Talk) -> None:
    """A turn may end in the middle of a pack."""
    writer = await talk.writer()
    writer.mute = True
    talk.spawn(_all(talk.worker(), 3))
    await until(lambda: len(writer.side._heard) == 3)
    first = writer.side.take(2)
    assert (await writer.side.heard_until() or 0) > 0
    for each in first:
        each.reply(GRANTED)
    await writer.side.flush()
    assert await talk.entries() == 1
    writer.side.take(2)
    assert await writer.side.heard_until() == 0


async def test_what_another_writer_has_in_hand_is_not_heard(talk: Talk) -> None:
    other = await talk.writer("other")
    other.mute = True
    talk.worker().beat("w1", [])
    await until(lambda: not other.side.empty)
    other.side.take(10)
    writer = await talk.writer("writer2")
    assert (await writer.side.heard_until() or 0) > 0


async def test_nobody_can_tell_after_a_flush_and_all_may_be_lost(talk: Talk) -> None:
    writer = await talk.writer()
    assert await writer.side.heard_until() == 0
    await talk.redis.flushall()
    await until(lambda: True in writer.gaps)
    await until(lambda: _is(writer.side.heard_until(), 0))


@pytest.mark.parametrize("keep", [True, False])
async def test_a_restart_is_a_gap_and_says_whether_all_was_lost(
    own_redis: RedisServer, keep: bool
) -> None:
    async with talking(own_redis.url()) as talk:
        writer, worker = await talk.writer(), talk.worker()
        assert await within(worker.claim(claim(1))) == GRANTED
        assert writer.gaps == []
        own_redis.kill()
        assert await writer.side.heard_until() is None
        assert writer.gaps
        own_redis.start(keep=keep)
        await until(lambda: _is(writer.side.heard_until(), 0))
        assert (True in writer.gaps) is not keep
        assert await within(worker.claim(claim(2))) == GRANTED


async def test_a_cut_of_the_writers_link_is_a_gap_in_which_nothing_was_lost(
    talk: Talk, redis_server: RedisServer
) -> None:
    async with Proxy("127.0.0.1", redis_server.port) as proxy:
        writer = await talk.writer(url=f"redis://127.0.0.1:{proxy.port}/0")
        proxy.cut()
        asking = talk.spawn(talk.worker().claim(claim()))
        assert await writer.side.heard_until() is None
        await asyncio.sleep(0.5)
        before = len(writer.gaps)
        proxy.heal()
        assert await within(asking) == GRANTED
        await until(lambda: len(writer.gaps) > before)
        assert set(writer.gaps) == {False}
        await until(lambda: _is(writer.side.heard_until(), 0))


async def test_a_redis_that_dies_while_it_is_asked_is_no_error(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await talk.writer()

    async def away(*_: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(redis_conversation, "make_group", away)
    await talk.redis.flushall()
    assert await writer.side.heard_until() is None
    assert writer.gaps


async def test_a_flush_cut_in_the_middle_leaves_no_entry_that_nobody_gets(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep every writer from judging silence, for ever."""
    writer = await talk.writer()
    writer.mute = True
    talk.worker().beat("w1", [])
    await until(lambda: not writer.side.empty)
    [heard] = writer.side.take(10)
    assert isinstance(heard, RedisHeard)
    heard.reply(None)
    commands: list[Any] = []

    async def first_only(self: Any, **_: object) -> None:
        commands.extend(self.command_stack)
        await talk.redis.execute_command(*commands[0][0])

    monkeypatch.setattr("redis.asyncio.client.Pipeline.execute", first_only)
    await writer.side.flush()
    monkeypatch.undo()
    assert len(commands) > 1
    await until(lambda: _is(writer.side.heard_until(), 0))
