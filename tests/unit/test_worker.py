"""The worker against a writer that answers by hand: no database, no broker, no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs
from support.bench import JOB, Bench, ByHand, message
from support.patience import PATIENCE

from agentflow import Accepted, Artifact, Call, Policy, Result
from agentflow.core.events import Abandoned, Canceled, Envelope, Failed, Progressed, Succeeded
from agentflow.core.results import Custody
from agentflow.transport.conversation import Chore, Denied, Granted
from agentflow.types import Token, utcnow
from agentflow.worker.chores import do_chore
from agentflow.worker.spool import Spool


@pytest.fixture
def hand() -> ByHand:
    return ByHand()


@pytest.fixture
def bench(hand: ByHand, tmp_path: Path) -> Bench:
    return Bench(hand, tmp_path)


async def test_nothing_paid_is_called_before_the_grant(bench: Bench, hand: ByHand) -> None:
    calls: list[int] = []

    async def do(call: Call, input: Any) -> Any:
        calls.append(1)
        return Accepted("x")

    hand.slow_grant = asyncio.Event()
    worker = bench.worker(do)
    run = asyncio.ensure_future(worker.execute(message()))
    await asyncio.sleep(0.05)
    assert calls == []
    hand.slow_grant.set()
    await run
    assert calls == [1]
    assert hand.events == [Accepted("x", attempt=1)]
    await worker.close()


async def test_a_denied_attempt_is_not_called(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        raise AssertionError("called")

    hand.answer = Denied("canceled")
    worker = bench.worker(do)
    await worker.execute(message())
    assert hand.events == []
    await worker.close()


@pytest.mark.parametrize("repeatable", [False, True])
async def test_a_claim_overtaken_by_a_cancel_is_handed_back(
    bench: Bench, hand: ByHand, repeatable: bool
) -> None:
    """The machine may have granted it before it was canceled, and waits for a report."""

    async def do(call: Call, input: Any) -> Any:
        return 1

    hand.answer = Denied("canceling")
    worker = bench.worker(do, Policy(repeatable=repeatable))
    await worker.execute(message())
    (claim,) = hand.claims
    assert hand.events == [Abandoned(called=False, nonce=claim.nonce, attempt=1)]
    await worker.close()


async def test_a_repeatable_task_does_not_wait_for_the_grant(bench: Bench, hand: ByHand) -> None:
    called = asyncio.Event()

    async def do(call: Call, input: Any) -> Any:
        called.set()
        return {"n": 1}

    hand.slow_grant = asyncio.Event()
    worker = bench.worker(do, Policy(repeatable=True))
    run = asyncio.ensure_future(worker.execute(message()))
    await asyncio.wait_for(called.wait(), PATIENCE)
    hand.slow_grant.set()
    await run
    assert isinstance(hand.events[0], Succeeded)
    await worker.close()


async def test_each_asking_has_a_nonce_of_its_own(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        return 1

    hand.answer = Denied("running")
    worker = bench.worker(do)
    await worker.execute(message())
    await worker.execute(message())
    assert len({c.nonce for c in hand.claims}) == 2
    await worker.close()


async def test_an_outcome_is_kept_until_it_is_confirmed(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        return {"paid": True}

    hand.deaf = True
    worker = bench.worker(do)
    run = asyncio.ensure_future(worker.execute(message()))
    while not hand.heard:
        await asyncio.sleep(0.01)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await worker.close()
    first = hand.heard[0]
    hand.heard.clear()
    hand.deaf = False
    later = bench.make()
    await later.reports.recover()
    assert hand.heard == [first], "under the same id"
    assert later.reports.spool.recover() == []
    await later.close()


async def test_a_torn_line_of_the_spool_is_left_out(bench: Bench, hand: ByHand) -> None:
    spool = Spool(bench.tmp / "spool.jsonl")
    whole = Envelope("out:1:n", *_source(), JOB, Succeeded(Result(output=1), attempt=1))
    spool.add(whole)
    spool.close()
    with (bench.tmp / "spool.jsonl").open("ab") as file:
        file.write(b'{"id":"out:2:n","source":"wor')
    assert Spool(bench.tmp / "spool.jsonl").recover() == [whole]


def _source() -> tuple[Any, Any]:
    from agentflow.core.events import Source

    return Source.WORKER, utcnow()


async def test_a_create_in_flight_is_not_canceled(bench: Bench, hand: ByHand) -> None:
    going = asyncio.Event()

    async def do(call: Call, input: Any) -> Any:
        going.set()
        await asyncio.sleep(0.1)
        return Accepted("made")

    worker = bench.worker(do)
    run = asyncio.ensure_future(worker.execute(message()))
    await going.wait()
    worker.stop_attempt(JOB, 1)
    await run
    assert hand.events == [Accepted("made", attempt=1)]
    await worker.close()


async def test_a_local_task_is_really_canceled(hand: ByHand, tmp_path: Path) -> None:
    going, ended = asyncio.Event(), asyncio.Event()

    async def do(call: Call, input: Any) -> Any:
        going.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    bench = Bench(hand, tmp_path, local=True)
    worker = bench.worker(do)
    run = asyncio.ensure_future(worker.execute(message()))
    await going.wait()
    worker.stop_attempt(JOB, 1)
    await asyncio.wait_for(run, PATIENCE)
    assert ended.is_set()
    assert hand.events == [Canceled(attempt=1)]
    await worker.close()


async def test_what_outlives_the_grace_is_handed_back_as_unsure(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        await asyncio.sleep(60)

    worker = bench.worker(do)
    run = asyncio.ensure_future(worker.execute(message()))
    while not worker.running:
        await asyncio.sleep(0.01)
    await worker.drain(0.05)
    await asyncio.wait_for(run, PATIENCE)
    nonce = hand.events[0].nonce  # a later asking for the same attempt is not given up by this
    assert nonce
    assert hand.events == [Abandoned(called=True, nonce=nonce, attempt=1)]
    await worker.close()


@pytest.mark.parametrize(
    ("error", "local", "kind"),
    [
        (TimeoutError(), False, "outcome_unknown"),
        (TimeoutError(), True, "timeout"),
        (KeyError("id"), False, "outcome_unknown"),
        (KeyError("id"), True, "provider_error"),
        (httpx.ConnectError("no"), False, "unavailable"),
        (httpx.ReadTimeout("no"), False, "outcome_unknown"),
    ],
)
async def test_what_may_have_left_is_unknown_not_failed(
    hand: ByHand, tmp_path: Path, error: Exception, local: bool, kind: str
) -> None:
    async def do(call: Call, input: Any) -> Any:
        raise error

    worker = Bench(hand, tmp_path, local=local).worker(do)
    await worker.execute(message())
    (event,) = hand.events
    assert isinstance(event, Failed)
    assert event.error.kind == kind
    await worker.close()


async def test_a_call_over_its_time_is_stopped_and_unknown(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        await asyncio.sleep(60)

    hand.answer = Granted(0.05, utcnow() + timedelta(hours=1), True)
    worker = bench.worker(do)
    await asyncio.wait_for(worker.execute(message()), PATIENCE)
    assert hand.events[0].error.kind == "outcome_unknown"
    await worker.close()


async def test_secrets_do_not_leave_in_messages(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        raise ValueError(f"bad key {call.settings.key.get_secret_value()}")

    worker = bench.worker(do)
    await worker.execute(message())
    assert "sk-very" not in hand.events[0].error.message
    assert "***" in hand.events[0].error.message
    await worker.close()


async def test_what_databases_refuse_is_cleaned_or_unstorable(bench: Bench, hand: ByHand) -> None:
    answers = iter([{"t": "a\0b\ud800", "n": float("nan")}, {"x": object()}])

    async def do(call: Call, input: Any) -> Any:
        return next(answers)

    worker = bench.worker(do)
    await worker.execute(message())
    await worker.execute(message())
    good, bad = hand.events
    assert good.result.output == {"t": "a\ufffdb?", "n": None}
    assert bad.error.kind == "unstorable"
    await worker.close()


async def test_a_large_output_travels_as_a_file(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        return "x" * 5000

    worker = bench.worker(do, max_result=1000)
    await worker.execute(message())
    result = hand.events[0].result
    assert result.output is None
    (file,) = result.artifacts
    assert (file.status, file.size) == (Custody.STORED, 5002)
    assert await worker.files.store.size(file.key) == 5002
    await worker.close()


async def test_progress_is_thinned_out_and_comes_before_the_outcome(
    bench: Bench, hand: ByHand
) -> None:
    async def do(call: Call, input: Any) -> Any:
        for n in range(50):
            call.progress(n / 100, "working")
        call.progress(1.0)
        await asyncio.sleep(0)
        return 1

    worker = bench.worker(do)
    await worker.execute(message())
    progress = [e for e in hand.events if isinstance(e, Progressed)]
    assert [p.fraction for p in progress] == [0.0, 1.0]
    assert isinstance(hand.events[-1], Succeeded)
    await worker.close()


async def test_a_call_cannot_submit(bench: Bench, hand: ByHand) -> None:
    names: set[str] = set()

    async def do(call: Call, input: Any) -> Any:
        names.update(n for n in dir(call) if not n.startswith("_"))

    worker = bench.worker(do)
    await worker.execute(message())
    assert not {n for n in names if "submit" in n or n == "app" or "db" in n}
    await worker.close()


def chore(kind: str, **changes: Any) -> Chore:
    said: dict[str, Any] = {
        "kind": kind, "job_id": JOB, "attempt": 1, "token": Token("t" * 32), "task": "acme.do",
        "tenant": "default", "external_id": "ext", "since": utcnow(),
        "deadline": utcnow() + timedelta(hours=1),
    }  # fmt: skip
    return Chore(**(said | changes))


async def test_a_fetch_that_fails_is_no_news(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any: ...

    worker = bench.worker(do)

    @bench.task.fetch
    async def fetch(call: Call, external_id: str) -> Any:
        raise httpx.ReadTimeout("slow")

    await do_chore(worker, chore("fetch"))
    assert hand.events == []
    await worker.close()


async def test_a_fetch_reports_what_the_provider_says(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any: ...

    worker = bench.worker(do)

    @bench.task.fetch
    async def fetch(call: Call, external_id: str) -> Any:
        return Succeeded(Result(output=external_id))

    await do_chore(worker, chore("fetch"))
    (event,) = hand.events
    assert (event.result.output, event.external_id, event.attempt) == ("ext", "ext", 1)
    assert hand.heard[0].source == "poll"
    await worker.close()


class Order(BaseModel):
    model: str
    steps: int = 4


def asked(bench: Bench) -> list[Any]:
    """What a task's functions will have been given: all but `cancel` want the input."""
    given: list[Any] = []
    task = bench.provider.task("do", input=Order)(lambda call, input: None)

    @task.fetch
    async def fetch(call: Call, external_id: str, input: Order) -> Any:
        given.append((external_id, input))

    @task.find
    def find(call: Call, token: str, since: Any, *, input: Order) -> Any:
        given.append((token, input))

    @task.cancel
    async def cancel(call: Call, external_id: str) -> Any:
        given.append(external_id)
        return Canceled()

    return given


async def test_what_is_asked_after_work_gets_the_jobs_input_if_it_has_a_place_for_it(
    bench: Bench, hand: ByHand
) -> None:
    given = asked(bench)
    worker = bench.make()
    for kind in ("fetch", "find", "cancel"):
        await do_chore(worker, chore(kind, input={"model": "flux"}))
    order = Order(model="flux", steps=4)
    assert given == [("ext", order), ("t" * 32, order), "ext"]
    await worker.close()


async def test_an_input_that_does_not_fit_any_more_is_not_asked_with_and_not_shown(
    bench: Bench, hand: ByHand
) -> None:
    given = asked(bench)
    worker = bench.make()
    with capture_logs() as logs:
        await do_chore(worker, chore("fetch", input={"model": ["a secret"]}))
        await do_chore(worker, chore("cancel", input={"model": ["a secret"]}))
    assert given == ["ext"], "what does not ask for it does not care"
    (said,) = [line["error"] for line in logs if line["event"] == "Chore failed"]
    assert "The job's input does not fit: input.model: " in said
    assert "a secret" not in said
    await worker.close()


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def test_a_file_that_the_plugin_writes_itself_is_in_custody(
    bench: Bench, hand: ByHand
) -> None:
    async def do(call: Call, input: Any) -> Any: ...

    worker = bench.worker(do)

    @bench.task.fetch
    async def fetch(call: Call, external_id: str) -> Any:
        first = await call.keep(pieces(b"a", b"b"), "one.txt", "text/plain")
        second = await call.keep(pieces(b"cd"), "two.txt", "text/plain")
        return Succeeded(Result(artifacts=[first, second, Artifact("data:,ef")]))

    await do_chore(worker, chore("fetch"))
    (event,) = hand.events
    assert [a.status for a in event.result.artifacts] == [Custody.STORED] * 3
    held = [b"".join([c async for c in await worker.files.store.open(a.key)])
            for a in event.result.artifacts]  # fmt: skip
    assert held == [b"ab", b"cd", b"ef"]
    await worker.close()


async def test_a_kept_file_in_another_s_place_is_refused(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        kept = await call.keep(pieces(b"a"), "one.txt", "text/plain")
        return Result(artifacts=[Artifact("data:,ef"), kept])

    worker = bench.worker(do, Policy(repeatable=True))
    await worker.execute(message())
    (event,) = [e for e in hand.events if isinstance(e, Failed)]
    assert "Kept files come first" in event.error.message
    await worker.close()


async def test_a_kept_file_that_is_too_large_cannot_be_stored(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any:
        await call.keep(pieces(b"a" * 1_000_001), "one.txt", "text/plain")

    worker = bench.worker(do)
    await worker.execute(message())
    (event,) = hand.events
    assert event.error.kind == "unstorable"
    await worker.close()


async def test_who_asks_during_a_fetch_is_answered_by_one_more(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Any: ...

    worker = bench.worker(do)
    going, asked = asyncio.Event(), 0

    @bench.task.fetch
    async def fetch(call: Call, external_id: str) -> Any:
        nonlocal asked
        asked += 1
        await going.wait()
        return Progressed(message=str(asked))

    fetches = [asyncio.ensure_future(do_chore(worker, chore("fetch"))) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert asked == 1
    going.set()
    await asyncio.gather(*fetches)
    assert [e.message for e in hand.events] == ["1", "2"]
    assert worker.fetching == {}
    await worker.close()


async def test_a_fetch_has_the_time_its_task_says(bench: Bench, hand: ByHand) -> None:
    given: list[float] = []

    async def do(call: Call, input: Any) -> Any: ...

    bench.task = bench.provider.task("do", fetch_timeout=0.05)(do)

    @bench.task.fetch
    async def fetch(call: Call, external_id: str) -> Any:
        given.append(call.timeout)
        await asyncio.sleep(5)
        return Succeeded(Result())

    worker = bench.make()
    await do_chore(worker, chore("fetch"))
    assert given == [0.05]
    assert hand.events == []
    await worker.close()


async def test_a_file_that_is_gone_is_lost_and_one_that_fails_waits(
    bench: Bench, hand: ByHand
) -> None:
    async def do(call: Call, input: Any) -> Any: ...

    worker = bench.worker(do)
    artifacts = [
        {"url": "http://127.0.0.1:1/private", "status": "pending"},
        {"url": "data:text/plain,hello", "status": "pending"},
    ]
    await do_chore(worker, chore("collect", artifacts=artifacts))
    (event,) = hand.events
    assert [a.status for a in event.artifacts] == [Custody.LOST, Custody.STORED]
    await worker.close()


async def test_a_grant_that_comes_during_the_stop_is_handed_back_unused(
    bench: Bench, hand: ByHand
) -> None:
    called = []

    async def do(call: Call, input: Any) -> Any:
        called.append(1)

    worker = bench.worker(do)
    hand.slow_grant = asyncio.Event()
    run = asyncio.ensure_future(worker.execute(message()))
    while not hand.claims:
        await asyncio.sleep(0.01)
    drain = asyncio.ensure_future(worker.drain(0.05))
    await asyncio.sleep(0)
    hand.slow_grant.set()
    await asyncio.wait_for(asyncio.gather(run, drain), PATIENCE)
    nonce = hand.claims[0].nonce
    assert (called, hand.events) == ([], [Abandoned(called=False, nonce=nonce, attempt=1)])
    await worker.close()
