"""Live text in memory: bounded, with every hole known, and put together from small pieces."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import orjson
import pytest
from support.patience import PATIENCE

from agentflow.transport.live import CHANNELS, SILENT, Limits, LocalLive, Piece, Tape, Window
from agentflow.types import JobId
from agentflow.web.deltas import MOST, Position
from agentflow.worker import speech
from agentflow.worker.speech import Speech

JOB = JobId("job_1")
KIB = 1024


def piece(offset: int, text: str, attempt: int = 1, **more: Any) -> Piece:
    fields = {"job_id": JOB, "run": "r", "channel": "text", **more}
    return Piece(attempt=attempt, offset=offset, text=text, **fields)


def window(job: int = 64 * KIB, total: int = 1024 * KIB, keep: float = 60.0, **more: Any) -> Window:
    return Window(Limits(job, total, keep), **more)


def news(position: Position, said: Any) -> list[dict[str, Any]]:
    return [{"event": e.event, **orjson.loads(e.data)} for e in position.news(said)]


# One channel


def test_a_tape_gives_back_what_was_said_from_any_place() -> None:
    tape, whole = Tape(), ""
    for n in range(500):
        tape.add(len(whole), f"{n}é ")
        whole += f"{n}é "
    for offset in (0, 1, 777, len(whole) - 1):
        assert tape.read(offset, 10**6) == (offset, whole[offset:])
        assert tape.read(offset, 3) == (offset, whole[offset : offset + 3])
    assert tape.read(len(whole), 9) == (len(whole), "")


def test_what_comes_twice_is_taken_once() -> None:
    tape = Tape()
    for offset, text in ((0, "abc"), (0, "abc"), (2, "cde"), (1, "b")):
        tape.add(offset, text)
    assert tape.read(0, 99) == (0, "abcde")


def test_a_hole_is_known_and_text_is_never_read_across_it() -> None:
    tape = Tape()
    tape.add(0, "abc")
    tape.add(10, "xyz")
    assert tape.read(0, 99) == (0, "abc")
    assert tape.read(3, 99) == (10, "xyz")
    assert tape.read(5, 99) == (10, "xyz")


# All jobs


def test_a_flood_keeps_its_newest_text_within_the_limit_of_a_job() -> None:
    one = window(job=64 * KIB)
    for n in range(2000):
        one.add(piece(n * 8192, "x" * 8192))
    said = one.get(JOB)
    assert said is not None
    assert 32 * KIB < one.size == said.size <= 64 * KIB
    (gap, *deltas) = news(Position(), said)
    assert gap["event"] == "gap"
    assert gap["missing"] + sum(len(d["text"]) for d in deltas) == 2000 * 8192


def test_all_jobs_together_have_a_limit_and_the_longest_silent_goes_first() -> None:
    one = window(job=64 * KIB, total=100 * KIB)
    for n in range(50):
        one.add(piece(0, "x" * 9000, job_id=f"job_{n}"))
        assert one.size <= 100 * KIB
    assert one.get(JobId("job_0")) is None
    assert one.get(JobId("job_49")) is not None


def test_text_of_many_tiny_pieces_is_counted_as_what_it_takes() -> None:
    one = window()
    for n in range(20_000):
        one.add(piece(n, "x"))
    said = one.get(JOB)
    assert said is not None
    parts = list(said.tapes["text"]._parts)
    assert sum(sys.getsizeof(text) for _, text in parts) == one.size < 30 * KIB
    assert len(parts) < 50


def test_text_goes_some_time_after_its_end_and_silence_is_no_end() -> None:
    now = [0.0]
    one = window(keep=60, now=lambda: now[0])
    one.add(piece(0, "abc"))
    one.add(piece(0, "abc", job_id="job_2"))
    one.add(piece(3, "", end=True))
    now[0] = 59
    assert one.get(JOB) is not None
    now[0] = 61
    assert one.get(JOB) is None
    assert one.get(JobId("job_2")) is not None
    one.add(piece(0, "x", job_id="job_3"))
    assert len(one._jobs) == 2, "it is not only hidden"
    now[0] = SILENT + 1
    assert one.get(JobId("job_2")) is None


def test_a_new_attempt_begins_anew_and_the_older_one_is_heard_no_more() -> None:
    one, client = window(), Position()
    one.add(piece(0, "old "))
    assert [d["text"] for d in news(client, one.get(JOB))] == ["old "]
    one.add(piece(0, "new", attempt=2))
    one.add(piece(4, "words"))
    said = [(d["attempt"], d["offset"], d["text"]) for d in news(client, one.get(JOB))]
    assert said == [(2, 0, "new")]


def test_two_calls_of_one_attempt_are_not_mixed() -> None:
    one = window()
    one.add(piece(0, "first"))
    one.add(piece(0, "second call", run="other"))
    assert [d["text"] for d in news(Position(), one.get(JOB))] == ["first"]


# One client


@pytest.mark.parametrize("said", ["0", "12", "12:1.340.20", "0:3.0.0"])
def test_a_position_is_read_as_it_was_written(said: str) -> None:
    assert Position.read(said).id == said


@pytest.mark.parametrize(
    "said", ["", "x", "-1", "1:", "1:1", "1:1.", "1:1.2.", "1.2", "1:1.٣", "1" * 10, "1:1.2.3 "]
)
def test_a_position_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(ValueError):
        Position.read(said)


def test_a_position_of_a_server_with_fewer_or_more_channels_is_read() -> None:
    assert Position.read("4:2.7").at == {"text": 7}
    assert Position.read("4:2.7.8.9").at == {"text": 7, "logs": 8}


def test_wherever_a_client_goes_on_it_has_the_whole_text_once() -> None:
    one, whole = window(), "".join(map(str, range(300)))
    one.add(piece(0, whole))
    for cut in range(0, len(whole), 7):
        client = Position.read(f"3:1.{cut}.0")
        got = news(client, one.get(JOB))
        assert whole[:cut] + "".join(d["text"] for d in got) == whole
        assert client.id == f"3:1.{len(whole)}.0"


def test_a_lost_end_is_a_gap_and_a_whole_text_none() -> None:
    one, client = window(), Position()
    one.add(piece(0, "abc"))
    news(client, one.get(JOB))
    assert [e.event for e in client.unsure(one.get(JOB))] == ["gap"], "its end was not heard"
    one.add(piece(10, "", end=True))
    (gap,) = news(client, one.get(JOB))
    assert (gap["event"], gap["offset"], gap["missing"]) == ("gap", 3, 7)
    assert list(client.unsure(one.get(JOB))) == []
    (gap,) = client.unsure(None)
    assert orjson.loads(gap.data)["missing"] is None
    assert list(Position().unsure(None)) == [], "who was given no text misses none"


def test_a_long_text_comes_in_events_of_bounded_size() -> None:
    one = window(job=1024 * KIB)
    one.add(piece(0, "y" * 100_000))
    sizes = [len(d["text"]) for d in news(Position(), one.get(JOB))]
    assert sum(sizes) == 100_000
    assert max(sizes) <= MOST


# One call


class Taken:
    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.settled = 0

    def send(self, piece: Piece) -> None:
        self.pieces.append(piece)

    async def settle(self) -> None:
        self.settled += 1

    def text(self, channel: str = "text") -> str:
        """With `_` for what was left out."""
        whole = ""
        for each in self.pieces:
            if each.channel == channel:
                whole += "_" * (each.offset - len(whole)) + each.text
        return whole


async def test_the_first_piece_goes_at_once_and_many_go_together() -> None:
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)
    said.say("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [p.text for p in taken.pieces] == ["a"]
    for _ in range(200):
        said.say("b")
    await asyncio.sleep(0)
    assert len(taken.pieces) == 1, "it waits for more"
    async with asyncio.timeout(PATIENCE):
        while len(taken.pieces) < 2:
            await asyncio.sleep(speech.EVERY)
    assert [p.text for p in taken.pieces] == ["a", "b" * 200]
    await said.end()
    assert taken.pieces[-1] == Piece(JOB, 1, "nonce", "text", 201, "", end=True)
    assert taken.settled == 1


async def test_channels_keep_their_order_and_their_own_offsets() -> None:
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)
    for text, channel in (("a", "text"), ("log", "logs"), ("b", "text"), ("ging", "logs")):
        said.say(text, channel)
    await said.end()
    told = [(p.channel, p.offset, p.text) for p in taken.pieces if not p.end]
    assert told == [("text", 0, "a"), ("logs", 0, "log"), ("text", 1, "b"), ("logs", 3, "ging")]
    assert {p.channel for p in taken.pieces if p.end} == set(CHANNELS)


async def test_a_call_that_says_nothing_sends_nothing() -> None:
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)
    said.say("")
    await said.end()
    assert (taken.pieces, taken.settled) == ([], 0)


async def test_what_is_said_after_the_end_is_not_heard() -> None:
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)
    await said.end()
    said.say("too late")
    await asyncio.sleep(2 * speech.EVERY)
    assert taken.pieces == []


async def test_any_thread_may_speak() -> None:
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)

    def work() -> None:
        for n in range(3000):
            said.say(f"{n} ")

    await asyncio.to_thread(work)
    await said.end()
    assert taken.text() == "".join(f"{n} " for n in range(3000))


async def test_a_loop_that_never_rests_still_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)
    for _ in range(1000):
        said.say("0123456789" * 10)
    assert len(taken.text()) > 90_000, "without a turn of the event loop"
    assert max(len(p.text) for p in taken.pieces) <= speech.FULL


async def test_a_thread_that_outruns_the_loop_leaves_out_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speech, "MOST", 1000)
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)

    def work() -> None:
        for n in range(5000):
            said.say(f"{n:04} ")
            assert said._length <= 1005
            assert len(said._heard) < 500

    thread = asyncio.get_running_loop().run_in_executor(None, work)
    import time

    time.sleep(0.2)
    await thread
    await said.end()
    whole = taken.text()
    assert len(whole) == 25_000 == taken.pieces[-1].offset
    assert whole.endswith("4999 ")
    assert "_" in whole
    spoken = "".join(f"{n:04} " for n in range(5000))
    assert all(a in ("_", b) for a, b in zip(whole, spoken, strict=True))


async def test_text_is_fit_to_be_sent_and_no_call_fails_for_it() -> None:
    taken = Taken()
    said = Speech(JOB, 1, "nonce", taken)
    said.say("a\0b\ud800c")
    said.say(None)
    said.say("x", "nowhere")
    await said.end()
    assert taken.text() == "a\ufffdb?c"


async def test_without_an_outlet_nothing_is_kept() -> None:
    said = Speech(JOB, 1, "nonce", None)
    said.say("x" * 100)
    assert said._heard == []
    await said.end()


async def test_a_flood_of_fifty_megabytes_stays_within_the_limits() -> None:
    live = LocalLive(Limits(512 * KIB, 1024 * KIB, 60))
    said = Speech(JOB, 1, "nonce", live)
    token = "word " * 4
    for n in range(50_000_000 // len(token)):
        said.say(token)
        if n % 50_000 == 0:
            await asyncio.sleep(0)
            assert live.window.size <= 512 * KIB
            assert said._length <= speech.MOST
    await said.end()
    assert 256 * KIB < live.window.size <= 512 * KIB
    gap = news(Position(), live.window.get(JOB))[0]
    assert gap["missing"] > 49_000_000
