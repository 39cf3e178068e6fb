"""The waiting room of a worker: permits before claims, hands for whoever can use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings
from support.patience import PATIENCE

from agentflow import Call, Limit, Policy, Provider, RateLimited
from agentflow.artifacts import FolderStore
from agentflow.clock import Clock
from agentflow.core.events import Envelope
from agentflow.core.limits import ROOM
from agentflow.plugins.catalogue import Catalogue, fingerprint
from agentflow.transport.conversation import Chore, Claim, Denied, Granted, Message
from agentflow.types import JobId, Token, utcnow
from agentflow.worker.chores import do_chore
from agentflow.worker.spool import Spool
from agentflow.worker.worker import Worker

HOUR = timedelta(hours=1)
ONE_AT_ONCE = Limit(concurrent=1)


class Writer:
    """Grants everything, in the order of the claims it keeps."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self.reports: list[Envelope] = []
        self.answer: Granted | Denied = Granted(5.0, utcnow() + HOUR, True)
        self.heard = asyncio.Event()
        self.heard.set()

    async def claim(self, claim: Claim) -> Granted | Denied:
        self.claims.append(claim)
        return self.answer

    async def report(self, envelope: Envelope) -> None:
        self.reports.append(envelope)
        await self.heard.wait()

    def beat(self, worker: str, attempts: Any) -> None: ...


class Keys(BaseSettings):
    key: SecretStr = SecretStr("key-number-one,key-number-two")


class Bench:
    """A worker with the providers `acme`, under limits, and `free`, under none. A call lasts until
    its gate is open."""

    def __init__(
        self, tmp: Path, writer: Writer, hands: int, limits: Any, keys: str | None
    ) -> None:
        self.gates = {"acme": asyncio.Event(), "free": asyncio.Event()}
        self.calls: list[str] = []
        self.made: list[Call] = []
        self.raises: Exception | None = None
        acme = Provider("acme", settings=Keys, limits=limits, keys=keys)
        catalogue = Catalogue([], [self._with_task(acme), self._with_task(Provider("free"))])
        self.worker = Worker(
            catalogue,
            writer,
            FolderStore(tmp / "files"),
            Spool(tmp / "spool.jsonl"),
            Clock(),
            id="w1",
            max_result=10_000,
            max_artifact=10_000,
            concurrency=hands,
        )
        self.running: list[asyncio.Task[None]] = []
        self.taken: list[str] = []

    def _with_task(self, provider: Provider) -> Provider:
        @provider.task("do", policy=Policy(on_unknown="fail"))
        async def do(call: Call, input: Any) -> Any:
            self.calls.append(input["id"])
            self.made.append(call)
            await self.gates[provider.name].wait()
            if self.raises is not None:
                raise self.raises
            return 1

        @do.fetch
        async def fetch(call: Call, external_id: str) -> Any:
            self.made.append(call)

        return provider

    async def send(
        self, *ids: str, to: str = "acme", tenant: str = "default", priority: int = 0, **input: Any
    ) -> None:
        for id in ids:
            message = Message(
                JobId(id), 1, Token("t"), f"{to}.do", {"id": id, **input}, utcnow() + HOUR,
                priority, None, tenant,
            )  # fmt: skip
            work = self.worker.execute(message, lambda id=id: self.taken.append(id))
            self.running.append(asyncio.create_task(work))
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)

    def open(self) -> None:
        for gate in self.gates.values():
            gate.set()

    async def done(self) -> None:
        self.open()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self.running)


@asynccontextmanager
async def at(
    tmp: Path,
    writer: Writer,
    *,
    hands: int = 8,
    limits: Any = ONE_AT_ONCE,
    keys: str | None = None,
) -> AsyncIterator[Bench]:
    made = Bench(tmp, writer, hands, limits, keys)
    yield made
    made.open()
    await made.worker.drain(0)
    for task in made.running:
        task.cancel()
    await asyncio.gather(*made.running, return_exceptions=True)
    await made.worker.close()


@pytest.fixture
def writer() -> Writer:
    return Writer()


# -- waiting ---------------------------------------------------------------------------------------


async def test_what_waits_for_a_permit_is_neither_claimed_nor_taken_up(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer) as bench:
        await bench.send("a", "b", "c")
        assert bench.calls == bench.taken == [c.job_id for c in writer.claims] == ["a"]
        await bench.done()
        assert bench.calls == bench.taken == ["a", "b", "c"]


async def test_what_waits_for_a_permit_keeps_no_hand_from_others(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer, hands=2) as bench:
        await bench.send(*"abcdefgh")
        await bench.send("x", to="free")
        assert bench.calls == ["a", "x"]


async def test_no_more_calls_at_once_than_there_are_hands(tmp_path: Path, writer: Writer) -> None:
    async with at(tmp_path, writer, hands=3) as bench:
        await bench.send(*"uvwxyz", to="free")
        assert bench.calls == ["u", "v", "w"]
        await bench.done()
        assert len(bench.calls) == 6


async def test_a_worker_that_stops_leaves_what_waits_to_others(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer) as bench:
        await bench.send("a", "b")
        bench.open()
        await bench.worker.drain(1.0)
        await bench.done()
        await bench.send("c")
        assert bench.taken == ["a"]


async def test_a_message_that_goes_while_it_waits_takes_no_permit(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer) as bench:
        await bench.send("a", "b", "c")
        bench.running.pop(1).cancel()
        await bench.done()
        assert bench.calls == ["a", "c"]


async def test_each_model_waits_by_itself(tmp_path: Path, writer: Writer) -> None:
    async with at(tmp_path, writer, limits=Limit(by="model", concurrent=1)) as bench:
        await bench.send("a1", "a2", model="a")
        await bench.send("b1", "b2", model="b")
        assert bench.calls == ["a1", "b1"]


# -- the permit ------------------------------------------------------------------------------------


async def test_a_permit_covers_the_call_and_not_the_report(tmp_path: Path, writer: Writer) -> None:
    async with at(tmp_path, writer) as bench:
        writer.heard.clear()
        bench.open()
        await bench.send("a", "b")
        assert bench.calls == ["a", "b"]
        assert len(writer.reports) == 2, "and none of them heard"
        writer.heard.set()


async def test_a_denied_claim_gives_its_permit_back_and_counts_as_no_call(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer, limits=Limit(concurrent=1, rate="1/hour")) as bench:
        writer.answer = Denied("canceled")
        await bench.send("a", "b", "c")
        assert [c.job_id for c in writer.claims] == ["a", "b", "c"]
        writer.answer = Granted(5.0, utcnow() + HOUR, True)
        await bench.send("d", "e")
        assert bench.calls == ["d"]


async def test_a_claim_overtaken_by_a_cancel_gives_its_permit_back_before_it_says_so(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer) as bench:
        writer.answer = Denied("canceling")
        writer.heard.clear()
        await bench.send("a", "b")
        assert [c.job_id for c in writer.claims] == ["a", "b"]
        writer.heard.set()


@pytest.mark.parametrize("wrong", [TypeError("a bug"), RateLimited()])
async def test_a_call_that_fails_gives_its_permit_back(
    tmp_path: Path, writer: Writer, wrong: Exception
) -> None:
    async with at(tmp_path, writer) as bench:
        bench.raises = wrong
        await bench.send("a", "b")
        await bench.done()
        assert bench.calls == ["a", "b"]


# -- pauses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(), (Limit(concurrent=5),)], ids=["no limit", "a limit"])
async def test_a_retry_after_holds_up_everybody_else(
    tmp_path: Path, writer: Writer, limits: Any
) -> None:
    async with at(tmp_path, writer, limits=limits) as bench:
        bench.raises = RateLimited(retry_after=0.5)
        bench.open()
        await bench.send("a")
        bench.raises = None
        await bench.send("b")
        await bench.send("x", to="free")
        assert bench.calls == ["a", "x"]
        assert bench.worker.room.figures()[0].total() == 1
        await bench.done()
        assert bench.calls == ["a", "x", "b"]


async def test_a_retry_after_of_one_model_leaves_the_others_alone(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer, limits=Limit(by="model")) as bench:
        bench.raises = RateLimited(retry_after=30)
        bench.open()
        await bench.send("a", model="a")
        await bench.send("a2", model="a")
        await bench.send("b", model="b")
        assert bench.calls == ["a", "b"]


# -- turns -----------------------------------------------------------------------------------------


async def test_tenants_take_turns_while_a_limit_binds(tmp_path: Path, writer: Writer) -> None:
    async with at(tmp_path, writer) as bench:
        await bench.send("first")
        await bench.send("a1", "a2", "a3", "a4", tenant="a")
        await bench.send("b1", "b2", tenant="b")
        await bench.send("c1", tenant="c")
        await bench.done()
        assert bench.calls == ["first", "a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_within_a_tenant_the_more_urgent_goes_first(tmp_path: Path, writer: Writer) -> None:
    async with at(tmp_path, writer) as bench:
        await bench.send("first")
        await bench.send("a1", "a2", tenant="a")
        await bench.send("a9", tenant="a", priority=9)
        await bench.send("b1", tenant="b")
        await bench.done()
        assert bench.calls == ["first", "a9", "b1", "a1", "a2"]


# -- how much is read ------------------------------------------------------------------------------


async def test_while_a_limit_binds_only_a_roomful_is_read(tmp_path: Path, writer: Writer) -> None:
    async with at(tmp_path, writer, hands=4) as bench:
        room = bench.worker.room
        assert room.free("acme", {}) == 4
        assert room.free("acme", {"free": 3}) == 1
        await bench.send("a", "b", "c")
        assert room.free("acme", {"acme": 2}) == ROOM - 2
        assert room.free("free", {"acme": 2}) == 3, "what waits needs no hand"
        await bench.done()
        assert room.free("acme", {}) == 4


async def test_what_waits_and_what_is_held_can_be_watched(tmp_path: Path, writer: Writer) -> None:
    async with at(
        tmp_path, writer, limits=[Limit(concurrent=2), Limit(by="m", rate="9/hour")]
    ) as b:
        await b.send("a", "b", "c", m="x")
        waiting, held = b.worker.room.figures()
        assert waiting == {"acme": 1, "acme/m": 1}
        assert held == {"acme": 2, "acme/m": 2}
        await b.done()
        assert [f.total() for f in b.worker.room.figures()] == [0, 0]


# -- several keys ----------------------------------------------------------------------------------

ONE, TWO = (fingerprint("acme", f"key-number-{n}") for n in ("one", "two"))


async def test_each_call_is_made_with_the_key_its_claim_names(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer, keys="key") as bench:
        await bench.send("a", "b", "c")
        assert len(bench.calls) == 2, "one at once with each key"
        told = {claim.job_id: claim.account for claim in writer.claims}
        assert set(told.values()) == {ONE, TWO}
        for call in bench.made:
            key = call.settings.key.get_secret_value()
            assert fingerprint("acme", key) == told[call.job_id]


async def test_work_is_asked_after_with_the_key_it_was_made_with(
    tmp_path: Path, writer: Writer
) -> None:
    async with at(tmp_path, writer, keys="key") as bench:
        for account, key in ((TWO, "two"), (ONE, "one"), ("gone", "one"), (None, "one")):
            await do_chore(bench.worker, chore(account))
            assert bench.made[-1].settings.key.get_secret_value() == f"key-number-{key}"


def chore(account: str | None) -> Chore:
    now = utcnow()
    return Chore(
        "fetch", JobId("job_1"), 1, Token("t"), "acme.do", "default", "x1", now, now + HOUR,
        account=account,
    )  # fmt: skip
