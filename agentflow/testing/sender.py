"""Webhooks as a provider sends them: signed anew for each try, retried, and sometimes wrong."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from agentflow.testing.faults import Faults, Hit, Stats
from agentflow.testing.poster import Poster
from agentflow.types import new_id, utcnow

Sign: TypeAlias = Callable[[str, datetime, bytes, bool], Mapping[str, str]]
"""`sign(delivery_id, sent_at, body, forged) -> headers`; a forged one does not verify."""

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]

RETRIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between the tries of a webhook that counts; the last comes after about a minute."""


def is_loopback(url: str) -> bool:
    """Whether a URL is http and leads nowhere but to this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    return local and parts.scheme == "http"


class Sender:
    """Sends webhooks to loopback addresses only."""

    def __init__(
        self, sign: Sign, faults: Faults, stats: Stats, retries: Sequence[float] = RETRIES
    ) -> None:
        self.sign, self.faults, self.stats, self.retries = sign, faults, stats, retries
        self._poster = Poster()

    async def send(self, url: str, body: bytes, hit: Hit, *, retried: bool) -> None:
        """One webhook, with the faults that befall a whole message."""
        if not is_loopback(url):
            self.stats.counts["webhooks_refused"] += 1
            return
        delivery_id = new_id("msg")
        copies = 2 if hit("duplicate") else 1
        tries = [self._try(url, body, delivery_id, hit, retried) for _ in range(copies)]
        await asyncio.gather(*tries)

    async def _try(self, url: str, body: bytes, delivery_id: str, hit: Hit, retried: bool) -> None:
        for pause in (*(self.retries if retried else ()), None):
            if await self._post(url, body, delivery_id, hit):
                self.stats.counts["webhooks_delivered"] += 1
                return
            if pause is None:
                self.stats.counts["webhooks_given_up"] += 1
                return
            await asyncio.sleep(pause)

    async def _post(self, url: str, body: bytes, delivery_id: str, hit: Hit) -> bool:
        headers = self.sign(delivery_id, utcnow(), body, hit("wrong_signature"))
        self.stats.counts["webhooks_tried"] += 1
        try:
            status = await self._poster.post(
                url, {"content-type": "application/json", **headers}, body
            )
        except OSError:
            self.stats.answers["error"] += 1
            return False
        self.stats.answers[str(status)] += 1
        if 200 <= status < 300:
            self.stats.acknowledged.add(delivery_id)
            return True
        return False

    async def aclose(self) -> None:
        await self._poster.aclose()


class Outbox:
    """The webhooks of one piece of work, sent one after the other unless a fault mixes them up."""

    def __init__(self, sender: Sender, spawn: Spawn, url: str, hit: Hit) -> None:
        self._sender, self._spawn, self._url, self._hit = sender, spawn, url, hit
        self._before: asyncio.Task[None] | None = None
        self._held: list[bytes] = []
        self.settled = asyncio.Event()
        """Set once the last webhook was answered, given up or dropped."""

    def post(self, body: bytes, *, last: bool = False) -> None:
        """Send `body` in its turn. The `last` one is the one that the provider retries."""
        if self._hit("drop"):
            self._sender.stats.counts["webhooks_dropped"] += 1
            if last:
                self._spawn(self._end(self._before))
        elif not last and self._hit("reorder"):
            self._held.append(body)
        elif self._hit("delay"):
            self._spawn(self._late(body, last))
        else:
            self._before = self._spawn(self._next(self._before, body, last))

    async def _next(self, before: asyncio.Task[None] | None, body: bytes, last: bool) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._sender.send(self._url, body, self._hit, retried=last)
        if last:
            await self._end(None)

    async def _late(self, body: bytes, last: bool) -> None:
        await asyncio.sleep(self._sender.faults.delay_seconds)
        await self._sender.send(self._url, body, self._hit, retried=last)
        if last:
            await self._end(self._before)

    async def _end(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        for body in self._held:
            await self._sender.send(self._url, body, self._hit, retried=False)
        self.settled.set()
