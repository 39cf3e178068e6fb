"""What the writer cannot digest: kept with its traceback, out of everybody's way (rule 11)."""

from __future__ import annotations

from datetime import datetime

import orjson

from agentflow.store.inserts import InboxEntry, insert_inbox
from agentflow.store.sql import Sql
from agentflow.transport.conversation import Beat, Heard
from agentflow.types import new_id
from agentflow.writer.batch import POSTPONED
from agentflow.writer.handlers import explain


async def keep_poison(sql: Sql, heard: Heard, error: BaseException, now: datetime) -> None:
    """A row in the inbox, `failed`, with what was said and what it led to."""
    if isinstance(heard.said, Beat):
        return
    entry = InboxEntry(
        id=new_id("dlv"),
        kind="poison",
        body=orjson.dumps(heard.said, default=repr),
        received_at=now,
        job_id=heard.said.job_id,
    )
    await insert_inbox(sql, [entry])
    await give_up(sql, entry.id, error, now)


async def give_up(sql: Sql, id: str, error: BaseException, now: datetime) -> None:
    """Mark an inbox row `failed`, or put off the alarm of a job."""
    if id.startswith("job_"):
        later = now + POSTPONED
        rows = [[later, later, id]]
        await sql.update("agentflow_jobs", ("check_at", "wake_at"), ("id",), rows)
        return
    rows = [["failed", "poison", explain(error), now, id]]
    columns = ("status", "reason", "error", "applied_at")
    await sql.update("agentflow_inbox", columns, ("id",), rows)
