"""One of several processes on one PostgreSQL database that spend the same budget.

`python -m support.spending JOBS` makes so many jobs, each of which costs up to 1, and waits for
their ends. It says a word per line, and goes on when it reads one.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Collection

from pydantic import BaseModel

from agentflow import AgentFlow, Call, Cost, Policy, Provider, Result
from agentflow.store import budgets
from agentflow.store.budgets import Budget
from agentflow.store.sql import Sql
from agentflow.writer import purse
from support.contending import say, told, until

provider = Provider("fake")
app = AgentFlow(providers=[provider], plugins=[])


class Work(BaseModel):
    n: int = 0


@provider.task("work", input=Work, policy=Policy(deadline=60))
async def work(call: Call, input: Work) -> Result:
    await asyncio.sleep(random.uniform(0, 0.1))
    return Result(cost=Cost("1" if input.n % 2 else "0.9"))


async def lock_and_dawdle(sql: Sql, ids: Collection[str]) -> list[Budget]:
    """What is read stays true however long the writer then takes: others wait."""
    found = await budgets.lock_budgets(sql, ids)
    await asyncio.sleep(0.03)
    return found


purse.lock_budgets = lock_and_dawdle  # type: ignore[attr-defined]


async def main(jobs: int) -> None:
    async with app.lifespan():
        say("ready")
        await told()
        handles = await asyncio.gather(*(app.submit("fake.work", {"n": n}) for n in range(jobs)))
        await asyncio.gather(*(until(handle.id, "succeeded", "failed") for handle in handles))
        say("done")
        await told()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
