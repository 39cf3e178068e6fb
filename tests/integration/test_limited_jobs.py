"""Jobs of a provider under limits, from submit to end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings
from support.fakes import reasons, rows, tell, until
from support.patience import PATIENCE

from agentflow import Accepted, AgentFlow, Call, Limit, Provider, RateLimited, Settings
from agentflow.core import silence, transition
from agentflow.core.events import Abandoned
from agentflow.plugins.catalogue import fingerprint
from agentflow.transport.conversation import Claim

KEYS = ("key-number-one", "key-number-two")


class Keys(BaseSettings):
    key: SecretStr = SecretStr(",".join(KEYS))


class Limited:
    """`most` is the highest number of calls there were at once."""

    def __init__(self, *limits: Limit, settings: Any = Keys, keys: str | None = None) -> None:
        self.now = self.most = 0
        self.calls: Counter[str] = Counter()
        self.used: dict[str, list[str]] = {}
        self.answer: Any = 1
        self.gate = asyncio.Event()
        self.gate.set()
        self.provider = Provider("acme", settings=settings, limits=limits, keys=keys)
        task = self.provider.task("do")(self._do)
        task.fetch(self._note)
        task.cancel(self._note)

    async def crowd(self, app: AgentFlow, jobs: int, at_once: int) -> None:
        """So many jobs from submit to end; there are `at_once` calls before any of them ends."""
        self.gate.clear()
        handles = [await app.submit("acme.do", {}) for _ in range(jobs)]
        async with asyncio.timeout(PATIENCE):
            while self.now < at_once:
                await asyncio.sleep(0.01)
        self.gate.set()
        for job in handles:
            await until(app, job.id, "succeeded", seconds=20)

    async def _do(self, call: Call, input: Any) -> Any:
        self.calls[call.job_id] += 1
        self._use(call)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.01)
            await self.gate.wait()
        finally:
            self.now -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return Accepted(f"x-{call.job_id}") if self.answer is Accepted else self.answer

    async def _note(self, call: Call, external_id: str) -> None:
        self._use(call)

    def _use(self, call: Call) -> None:
        self.used.setdefault(call.job_id, []).append(call.settings.key.get_secret_value())


@asynccontextmanager
async def running(data: Path, limited: Limited, **options: Any) -> AsyncIterator[AgentFlow]:
    settings = Settings(data_dir=data, grace=0.2, synchronous="NORMAL")
    app = AgentFlow(providers=[limited.provider], plugins=[], settings=settings, **options)
    async with app.lifespan():
        yield app


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm of a queued job rings again and again while it waits."""
    for module in (transition, silence):
        monkeypatch.setattr(module, "RING_EVERY", 0.1, raising=False)


@pytest.mark.usefixtures("hurried")
async def test_jobs_wait_for_a_limit_without_an_attempt_and_without_a_trace(tmp_path: Path) -> None:
    limited = Limited(Limit(concurrent=2))
    limited.gate.clear()
    async with running(tmp_path, limited) as app:
        jobs = [await app.submit("acme.do", {}) for _ in range(30)]
        async with asyncio.timeout(PATIENCE):
            while limited.now < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.8)  # in which their alarms ring again and again
        assert limited.now == 2
        found = await rows("SELECT status, count(*) AS n FROM agentflow_jobs GROUP BY status")
        assert {r["status"]: r["n"] for r in found} == {"running": 2, "queued": 28}
        limited.gate.set()
        for job in jobs:
            await until(app, job.id, "succeeded", seconds=20)
            assert [said for _, _, said in await reasons(job.id)] == [
                "submitted", "started", "succeeded",
            ]  # fmt: skip
    assert limited.most == 2
    assert set(limited.calls.values()) == {1}


async def test_a_tenant_who_comes_late_does_not_wait_for_another_s_backlog(tmp_path: Path) -> None:
    limited = Limited(Limit(concurrent=1))
    limited.gate.clear()
    async with running(tmp_path, limited) as app:
        big = [await app.submit("acme.do", {}, tenant="big") for _ in range(120)]
        late = await app.submit("acme.do", {}, tenant="late")
        limited.gate.set()
        async with asyncio.timeout(30):
            while not limited.calls[late.id]:
                await asyncio.sleep(0.01)
        assert len(limited.calls) < 60
        assert limited.calls[big[-1].id] == 0


async def test_a_job_that_is_canceled_while_it_waits_ends_at_once(tmp_path: Path) -> None:
    limited = Limited(Limit(concurrent=1))
    limited.gate.clear()
    async with running(tmp_path, limited) as app:
        first, second, third = [await app.submit("acme.do", {}) for _ in range(3)]
        await until(app, first.id, "running")
        await second.cancel()
        await until(app, second.id, "canceled")
        limited.gate.set()
        await until(app, third.id, "succeeded")
        assert limited.calls[second.id] == 0


async def test_a_429_of_one_job_holds_up_the_others_and_uses_no_attempt_of_theirs(
    tmp_path: Path,
) -> None:
    limited = Limited()
    limited.answer = RateLimited(retry_after=2.0)
    async with running(tmp_path, limited) as app:
        first = await app.submit("acme.do", {})
        await until(app, first.id, "scheduled")
        limited.answer = 1
        others = [await app.submit("acme.do", {}) for _ in range(5)]
        await asyncio.sleep(0.3)
        assert list(limited.calls) == [first.id]
        for job in [first, *others]:
            await until(app, job.id, "succeeded", seconds=20)
        assert [limited.calls[job.id] for job in others] == [1] * 5


async def test_an_application_overrides_what_a_plugin_declares(tmp_path: Path) -> None:
    limited = Limited(Limit(concurrent=1))
    async with running(tmp_path, limited, limits={"acme": Limit(concurrent=3)}) as app:
        await limited.crowd(app, 12, at_once=3)
    assert limited.most == 3


HELD_UP = (
    b'agentflow_limit_waiting{limit="acme/model"} 3',
    b'agentflow_limit_held{limit="acme/model"} 2',
    b'agentflow_permit_wait_seconds_count{provider="acme"} 2',
)


async def test_what_waits_and_what_is_held_is_among_the_metrics(tmp_path: Path) -> None:
    limited = Limited(Limit(concurrent=2, by="model"))
    limited.gate.clear()
    async with running(tmp_path, limited) as app:
        for _ in range(5):
            await app.submit("acme.do", {"model": "a-client-s-own-word"})
        text = b""
        async with asyncio.timeout(PATIENCE):
            while not all(line in text for line in HELD_UP):
                await asyncio.sleep(0.02)
                text = await app.runtime.gauges.text()
        assert b"a-client-s-own-word" not in text
        limited.gate.set()


# -- several keys ----------------------------------------------------------------------------------


async def account(job: str) -> str | None:
    (row,) = await rows("SELECT account FROM agentflow_attempts")
    said: str | None = row["account"]
    return said


async def test_an_attempt_keeps_to_the_account_it_was_made_with(tmp_path: Path) -> None:
    """Also in the next process, and the audit proves where it says so."""
    limited = Limited(keys="key")
    limited.answer = Accepted
    async with running(tmp_path, limited) as app:
        job = await app.submit("acme.do", {})
        await until(app, job.id, "waiting")
        (made,) = limited.used[job.id]
        assert await account(job.id) == fingerprint("acme", made)
    again = Limited(keys="key")
    async with running(tmp_path, again) as app:
        await app.job(job.id).cancel()
        async with asyncio.timeout(PATIENCE):
            while len(again.used.get(job.id, ())) < 2:
                await asyncio.sleep(0.01)
        assert set(again.used[job.id]) == {made}


async def test_both_keys_are_used(tmp_path: Path) -> None:
    limited = Limited(Limit(concurrent=1), keys="key")
    async with running(tmp_path, limited) as app:
        await limited.crowd(app, 12, at_once=2)
    assert {key for used in limited.used.values() for key in used} == set(KEYS)
    assert limited.most == 2, "each has the limit to itself"


async def test_no_key_is_in_any_row(tmp_path: Path) -> None:
    limited = Limited(keys="key")
    limited.answer = ValueError(f"refused: {KEYS[0]} and {KEYS[1]}")
    async with running(tmp_path, limited) as app:
        job = await app.submit("acme.do", {})
        await until(app, job.id, "failed")
        for table in ("jobs", "attempts", "history"):
            for row in await rows(f"SELECT * FROM agentflow_{table}"):
                assert "key-number" not in str(row)


async def test_an_unused_grant_leaves_no_account_behind(tmp_path: Path) -> None:
    limited = Limited(keys="key")
    async with running(tmp_path, limited) as app:
        await app.runtime.serving.stop(0)
        job = await app.submit("acme.do", {})
        await app.runtime.conversation.claim(Claim(job.id, 1, "n1", "w1", "acme.do", "k1"))
        assert await account(job.id) == "k1"
        await tell(app, job.id, Abandoned(called=False, nonce="n1", attempt=1))
        assert await account(job.id) is None
