"""A worker against a writer that answers by hand: no database, no broker, no HTTP."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from agentflow import Policy, Provider
from agentflow.artifacts import FolderStore
from agentflow.clock import Clock
from agentflow.core.events import Envelope
from agentflow.plugins.catalogue import Catalogue
from agentflow.transport.conversation import Claim, Denied, Granted, Message
from agentflow.types import JobId, Token, utcnow
from agentflow.worker.spool import Spool
from agentflow.worker.worker import Worker

JOB = JobId("job_" + "a" * 32)


class ByHand:
    """The writer's side: `answer` is given to claims; reports wait while `deaf` is set."""

    def __init__(self) -> None:
        self.answer: Granted | Denied = Granted(5.0, utcnow() + timedelta(hours=1), True)
        self.claims: list[Claim] = []
        self.heard: list[Envelope] = []
        self.deaf = False
        self.slow_grant: asyncio.Event | None = None

    async def claim(self, claim: Claim) -> Granted | Denied:
        self.claims.append(claim)
        if self.slow_grant is not None:
            await self.slow_grant.wait()
        return self.answer

    async def report(self, envelope: Envelope) -> None:
        self.heard.append(envelope)
        if self.deaf:
            await asyncio.Event().wait()

    def beat(self, worker: str, attempts: Any) -> None: ...

    @property
    def events(self) -> list[Any]:
        return [e.event for e in self.heard]


class Secrets(BaseSettings):
    key: SecretStr = SecretStr("sk-very-secret-1234")


class Bench:
    """A worker with one provider, `paid` or `local`, whose function the test writes."""

    def __init__(self, hand: ByHand, tmp: Path, *, local: bool = False) -> None:
        self.provider = Provider("acme", settings=Secrets, local=local)
        self.hand, self.tmp = hand, tmp

    def worker(self, function: Any, policy: Policy | None = None, **limits: int) -> Worker:
        self.task = self.provider.task("do", policy=policy)(function)
        return self.make(**limits)

    def make(self, **limits: int) -> Worker:
        return Worker(
            Catalogue([], [self.provider]),
            self.hand,
            FolderStore(self.tmp / "files"),
            Spool(self.tmp / "spool.jsonl"),
            Clock(),
            id="worker_1",
            max_result=limits.get("max_result", 10_000),
            max_artifact=1_000_000,
        )


def message(input: Any = None) -> Message:
    return Message(JOB, 1, Token("t" * 32), "acme.do", input, utcnow() + timedelta(hours=1))
