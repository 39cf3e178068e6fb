"""What a task's function is given to work with: everything but a way to submit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

import httpx
import structlog

from agentflow.core.results import Artifact
from agentflow.errors import Unstorable
from agentflow.types import JobId, Token

Channel: TypeAlias = Literal["text", "logs"]


async def _nowhere(_: AsyncIterator[bytes], name: str, media_type: str) -> Artifact:
    raise Unstorable(f"There is no custody here for {name} ({media_type}).")


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt, seen from the plugin.

    `settings` is the provider's settings object. `http` is a shared client without credentials.
    `webhook_url` is where the provider shall report, None when polling is all there is. `token`
    is the attempt's, part of that URL. `idempotency_key` is the same whenever this attempt's call
    would be made. `timeout` is in seconds, for the whole function. `strays` are, for `find`, the
    newest external ids that the provider's webhooks named and no job has.
    """

    settings: Any
    http: httpx.AsyncClient
    job_id: JobId
    attempt: int
    token: Token
    webhook_url: str | None
    idempotency_key: str
    timeout: float
    deadline: datetime
    log: structlog.typing.FilteringBoundLogger
    on_progress: Callable[[float | None, str | None], None]
    open_artifact: Callable[[str], AbstractAsyncContextManager[AsyncIterator[bytes]]]
    on_text: Callable[[str, Channel], None] = lambda _text, _channel: None
    strays: Sequence[str] = ()
    keep_artifact: Callable[[AsyncIterator[bytes], str, str], Awaitable[Artifact]] = _nowhere

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Tell how far it is; `fraction` lies in 0..1. Never blocks, may be thinned out."""
        self.on_progress(fraction, message)

    def stream(self, text: str, channel: Channel = "text") -> None:
        """Show the next piece of the answer (`text`) or of what the provider logs (`logs`) to
        those who follow the job now. Never blocks; any thread may call it. It is stored nowhere
        and may be lost: what counts is returned. In `fetch`, `find` and `cancel` it does nothing.
        """
        self.on_text(text, channel)

    async def artifact(self, id: str) -> bytes:
        """The bytes of a file in custody (`art_…`). Raises `InvalidInput` if there is none, and
        `Unavailable` while the store is away: read before what is paid for is called."""
        async with self.open_artifact(id) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def keep(self, chunks: AsyncIterator[bytes], name: str, media_type: str) -> Artifact:
        """A file in custody, written piece by piece: for what only the plugin can fetch or make.

        It goes into the result's `artifacts` in the order of keeping, before any others. Raises
        `Unstorable` for more than custody takes, and whatever `chunks` raises.
        """
        return await self.keep_artifact(chunks, name, media_type)
