"""What people ask of the writer: commands come in by the inbox, as rows of their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import orjson

from agentflow.store.budgets import Budget, remove_budget, set_budget
from agentflow.store.pauses import clear_pause, ring_resumed, set_pause
from agentflow.store.sql import Sql
from agentflow.types import JobId


@dataclass(frozen=True, slots=True)
class Cancel:
    job: JobId


@dataclass(frozen=True, slots=True)
class Replay:
    """Apply this delivery once more."""

    delivery: str


@dataclass(frozen=True, slots=True)
class RetryHandler:
    """Run once more what was set aside."""

    run: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Of a task or a provider."""

    target: str
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    target: str


@dataclass(frozen=True, slots=True)
class SetBudget:
    budget: Budget


@dataclass(frozen=True, slots=True)
class RemoveBudget:
    id: str


Command: TypeAlias = Cancel | Replay | RetryHandler | Pause | Resume | SetBudget | RemoveBudget


def command_of(body: bytes | str) -> Command | None:
    """None for a command that this version does not know. Raises `ValueError` for what is no
    JSON, `TypeError` for what is no budget."""
    said: dict[str, Any] = orjson.loads(body)
    match said:
        case {"command": "cancel", "job": str(job)}:
            return Cancel(JobId(job))
        case {"command": "replay", "delivery": str(delivery)}:
            return Replay(delivery)
        case {"command": "retry_handler", "run": str(run)}:
            return RetryHandler(run)
        case {"command": "pause", "target": str(target)}:
            return Pause(target, str(said.get("note") or "") or None)
        case {"command": "resume", "target": str(target)}:
            return Resume(target)
        case {"command": "set_budget", "budget": {} as budget}:
            return SetBudget(Budget(**budget))
        case {"command": "remove_budget", "id": str(id)}:
            return RemoveBudget(id)
        case _:
            return None


async def carry_out(sql: Sql, command: Command | None, now: datetime) -> bool:
    """Change what is paused, and which budgets there are; whether this was about either."""
    match command:
        case Pause(target, note):
            await set_pause(sql, target, note, now)
        case Resume(target):
            await clear_pause(sql, target)
            await ring_resumed(sql, target, now)
        case SetBudget(budget):
            await set_budget(sql, budget, now)
        case RemoveBudget(id):
            await remove_budget(sql, id)
        case _:
            return False
    return True
