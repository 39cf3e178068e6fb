"""What a call brought home and has not been said yet: it is paid for, and here alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from support.bench import JOB, Bench, ByHand, message

from agentflow import Artifact, Call, Cost, Policy, Result
from agentflow.artifacts import ArtifactStoreError, FolderStore, Stored
from agentflow.core.events import Collected, Failed, Succeeded
from agentflow.core.results import Custody
from agentflow.transport.conversation import Chore, Granted
from agentflow.types import utcnow
from agentflow.worker import files
from agentflow.worker.chores import do_chore

PICTURE = "data:image/png;base64,iVBORw0KGgo="


class Away(FolderStore):
    """A store that does not answer so many times."""

    def __init__(self, root: Path, times: int) -> None:
        super().__init__(root)
        self.times = times

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> Stored:
        self._answer()
        return await super().put(key, chunks, max_bytes=max_bytes)

    async def size(self, key: str) -> int | None:
        self._answer()
        return await super().size(key)

    def _answer(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise ArtifactStoreError("The bucket is away.")


@pytest.fixture
def hand() -> ByHand:
    return ByHand()


@pytest.fixture
def bench(hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(files, "_waits", lambda: repeat(0.01))
    return Bench(hand, tmp_path)


def chore(kind: str, *artifacts: Any) -> Chore:
    return Chore(
        kind, JOB, 1, message().token, "acme.do", "default", "x1", utcnow(),
        utcnow() + timedelta(hours=1), artifacts,
    )  # fmt: skip


async def outcome(bench: Bench, worker: Any) -> Any:
    await worker.execute(message())
    await worker.close()
    (event,) = bench.hand.events
    return event


async def test_a_file_that_custody_will_not_take_is_no_riddle_and_was_billed(bench: Bench) -> None:
    async def do(call: Call, input: Any) -> Result:
        return Result(artifacts=[Artifact(PICTURE)], usage={"pictures": 1}, cost=Cost("0.04"))

    worker = bench.worker(do, Policy(on_unknown="retry"))
    worker.files.max_artifact = 3
    event = await outcome(bench, worker)
    assert isinstance(event, Failed)
    assert (event.error.kind, event.error.retryable) == ("unstorable", False)
    assert (event.usage, event.cost) == ({"pictures": 1}, Cost("0.04"))


async def test_an_output_too_large_for_custody_is_unstorable(bench: Bench) -> None:
    async def do(call: Call, input: Any) -> str:
        return "x" * 9000

    worker = bench.worker(do, max_result=100)
    worker.files.max_artifact = 8000
    event = await outcome(bench, worker)
    assert event.error.kind == "unstorable"


async def test_what_was_paid_for_waits_for_a_store_that_is_away(bench: Bench) -> None:
    calls: list[int] = []

    async def do(call: Call, input: Any) -> Result:
        calls.append(1)
        return Result(artifacts=[Artifact(PICTURE)])

    worker = bench.worker(do)
    worker.files.store = Away(bench.tmp / "files", times=3)
    event = await outcome(bench, worker)
    assert isinstance(event, Succeeded)
    assert [a.status for a in event.result.artifacts] == [Custody.STORED]
    assert calls == [1]


async def test_nobody_waits_for_a_store_beyond_the_deadline(bench: Bench, hand: ByHand) -> None:
    async def do(call: Call, input: Any) -> Result:
        return Result(artifacts=[Artifact(PICTURE)])

    hand.answer = Granted(5.0, utcnow() + timedelta(seconds=0.1), True)
    worker = bench.worker(do)
    worker.files.store = Away(bench.tmp / "files", times=10_000)
    event = await outcome(bench, worker)
    assert (event.error.kind, event.error.message) == ("unstorable", "The bucket is away.")


async def test_a_file_of_ours_that_cannot_be_read_now_is_no_unknown_outcome(bench: Bench) -> None:
    async def do(call: Call, input: Any) -> Any:
        return len(await call.artifact(f"art_{'a' * 32}_0"))

    worker = bench.worker(do)
    worker.files.store = Away(bench.tmp / "files", times=1)
    event = await outcome(bench, worker)
    assert (event.error.kind, event.error.retryable) == ("unavailable", True)


@pytest.mark.parametrize("url", [PICTURE, PICTURE.replace("data", "DATA")])
async def test_no_row_holds_a_file_however_its_url_is_written(bench: Bench, url: str) -> None:
    async def do(call: Call, input: Any) -> Result:
        return Result(artifacts=[Artifact(url)])

    event = await outcome(bench, bench.worker(do))
    (file,) = event.result.artifacts
    assert (file.status, file.url, file.size) == (Custody.STORED, None, 8)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (Result(output={"text": "x" * 200}, text="x" * 200), ["output.json"]),
        (Result(output="x" * 200), ["output.json"]),
        (Result(text="y" * 200), ["text.txt"]),
        (Result(output={"id": 1}, text="y" * 200), ["output.json", "text.txt"]),
    ],
)
async def test_nothing_of_a_large_result_is_dropped(
    bench: Bench, result: Result, names: list[str]
) -> None:
    async def do(call: Call, input: Any) -> Result:
        return result

    worker = bench.worker(do, max_result=100)
    event = await outcome(bench, worker)
    kept = event.result.artifacts
    assert [a.name for a in kept] == names
    assert (event.result.output, event.result.text) == (None, None)
    if result.text is not None and "text.txt" in names:
        chunks = await worker.files.store.open(kept[-1].key)
        assert b"".join([c async for c in chunks]) == result.text.encode()


async def test_a_fetch_that_brings_too_much_ends_the_job_and_is_not_repeated(bench: Bench) -> None:
    async def do(call: Call, input: Any) -> Any: ...

    async def fetch(call: Call, external_id: str) -> Any:
        return Succeeded(Result(artifacts=[Artifact(PICTURE)]))

    worker = bench.worker(do)
    bench.task.fetch(fetch)
    worker.files.max_artifact = 3
    await do_chore(worker, chore("fetch"))
    await worker.close()
    (event,) = bench.hand.events
    assert (event.error.kind, event.external_id, event.attempt) == ("unstorable", "x1", 1)


async def test_a_file_without_a_url_is_lost_and_stops_no_other(bench: Bench) -> None:
    async def do(call: Call, input: Any) -> Any: ...

    worker = bench.worker(do)
    await do_chore(worker, chore("collect", {"url": None}, {"url": PICTURE}))
    await worker.close()
    (event,) = bench.hand.events
    assert isinstance(event, Collected)
    assert [a.status for a in event.artifacts] == [Custody.LOST, Custody.STORED]
    assert event.artifacts[0].note == "The provider gave no URL of the file."
