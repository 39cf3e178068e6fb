"""Fakes with prices, and looks at the ledger and at budgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any

from tortoise.connection import get_connection

from agentflow import AgentFlow, Policy, Price, Result
from agentflow.audit.auditor import Audit
from agentflow.audit.finding import Finding
from agentflow.store.budgets import list_budgets
from agentflow.store.sql import Sql
from agentflow.transport.conversation import Claim, Granted
from agentflow.types import JobId, new_id
from agentflow.web.jobs import command
from support.fakes import Fake, rows
from support.patience import PATIENCE

PRICES = (Price(date(2026, 1, 1), {"seconds": "0.10"}),)
BILLED = {"output": 7, "usage": {"seconds": 3}}


def priced(policy: Policy | None = None) -> Fake:
    fake = Fake(policy)
    fake.provider.prices = PRICES
    return fake


def done(seconds: float = 3) -> Result:
    return Result(output=7, usage={"seconds": seconds})


async def ledger() -> list[dict[str, Any]]:
    return await rows('SELECT * FROM "agentflow_usage" ORDER BY "job_id", "attempt"')


async def findings() -> list[Finding]:
    @asynccontextmanager
    async def snapshots() -> AsyncIterator[Sql]:
        yield Sql(get_connection("default"))

    audit = Audit(snapshots, now=datetime.now(UTC))
    return [found async for page in audit.pages() for found in page if not found.warning]


async def budget(app: AgentFlow, cap: int, **more: Any) -> str:
    """In whole units; `per_call` is 1 of them."""
    step = 10**10
    said = {
        "id": new_id("bud"), "tenant": "default", "tag": "", "period": "total", "currency": "USD",
        "cap": int(cap * step), "per_call": step, **more,
    }  # fmt: skip
    _, status = await command(
        app.runtime.context, "default", {"command": "set_budget", "budget": said}
    )
    assert status == "applied"
    await app.runtime.writer.settled()
    return str(said["id"])


async def shown() -> dict[str, Any]:
    (only,) = await list_budgets(None, datetime.now(UTC))
    return {name: only[name] for name in ("spent", "reserved", "left")}


async def granted(app: AgentFlow, job: str, attempt: int) -> Any:
    """Claim it, as soon as it is queued."""
    async with asyncio.timeout(PATIENCE):
        while True:
            claim = Claim(JobId(job), attempt, new_id("n"), "w1", "fake.work")
            answer = await app.runtime.conversation.claim(claim)
            if isinstance(answer, Granted):
                return answer
            app.runtime.clock.advance(1)
            await app.runtime.writer.settled()
            await asyncio.sleep(0.01)
