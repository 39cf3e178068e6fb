"""Who asks, and what they may do."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from agentflow.store.keys import PREFIX, SCOPES, Key, find_key, key_id
from agentflow.store.transactions import detached
from agentflow.types import DEFAULT_TENANT
from agentflow.web.limiting import Misses

log = structlog.get_logger(__name__)

FRESH = timedelta(seconds=2)
"""How long a key is believed without another look: so soon a revoked one is refused."""

_MOST = 10_000
_BEARER = {"WWW-Authenticate": "Bearer"}

Find: TypeAlias = Callable[[str], Awaitable[Key | None]]


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request. `key` is the id of the API key, None where none is asked for."""

    tenant: str
    scope: str
    key: str | None = None

    @property
    def operator(self) -> bool:
        """Whether what concerns the whole installation, and no tenant alone, is theirs to see."""
        return self.scope == "admin" and self.tenant == DEFAULT_TENANT

    def require(self, scope: str) -> None:
        """Raise 403 for a scope too small. `admin` is for operators."""
        if SCOPES.index(self.scope) < SCOPES.index(scope):
            said = f"This needs a key of scope {scope}; this one has {self.scope}."
            raise HTTPException(403, said)
        if scope == "admin" and not self.operator:
            raise HTTPException(403, f"This needs an admin key of the tenant {DEFAULT_TENANT}.")


HERE = Principal(DEFAULT_TENANT, "admin")
"""Who asks where no key is needed: this machine, or the host application."""


@dataclass(frozen=True, slots=True)
class _Seen:
    key: Key
    at: datetime


class Authenticator:
    """Finds the principal of a key.

    A key that was seen is looked up every two seconds at most, however many requests come.
    Nothing is kept of unknown ones, and from one address only so many are looked for.
    """

    def __init__(self, find: Find = find_key) -> None:
        self._find = find
        self._seen: dict[str, _Seen] = {}
        self._asking: dict[str, asyncio.Task[Key | None]] = {}
        self._misses = Misses()

    async def principal(self, presented: str, address: str, now: datetime) -> Principal:
        """Raises 401 for what opens nothing, 429 for too many unknown keys from an address,
        and `StoreUnavailable`."""
        id = key_id(presented)
        key = await self._known(id, address, now) if id else None
        if key is None or not key.opens(presented, now):
            log.warning("API key refused", key_id=id, client=address)
            raise HTTPException(401, "This API key is not valid.", _BEARER)
        return Principal(key.tenant, key.scope, key.id)

    async def _known(self, id: str, address: str, now: datetime) -> Key | None:
        seen = self._seen.get(id)
        if seen is not None:
            if timedelta() <= now - seen.at < FRESH:
                return seen.key
            return await self._look(id, now)
        # Only what was never found is limited: a stranger behind the same proxy locks nobody out.
        self._misses.count(address, now)
        missed = False
        try:
            key = await self._look(id, now)
            missed = key is None
        finally:
            if not missed:
                self._misses.forgive(address)
        return key

    async def _look(self, id: str, now: datetime) -> Key | None:
        """Ask the database, once for all who wait for the answer."""
        asking = self._asking.get(id)
        if asking is None:
            asking = asyncio.create_task(
                self._ask(id, now), name="agentflow-key", context=detached()
            )
            self._asking[id] = asking
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(asking)

    async def _ask(self, id: str, now: datetime) -> Key | None:
        try:
            key = await self._find(id)
        finally:
            self._asking.pop(id, None)
        self._seen.pop(id, None)
        if key is not None:
            while len(self._seen) >= _MOST:
                self._seen.pop(next(iter(self._seen)))
            self._seen[id] = _Seen(key, now)
        return key


def presented_key(headers: Headers, *, required: bool) -> str | None:
    """The key of a request. Where none is required, what is no key of ours is none: a bearer
    token may be meant for the host application. Raises 401 if it is required and missing."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    given = [token.strip()] if scheme.lower() == "bearer" else []
    given = [key for key in (*given, headers.get("x-api-key", "").strip()) if key]
    ours = next((key for key in given if key.startswith(PREFIX)), None)
    if ours is not None or not required:
        return ours
    if not given:
        raise HTTPException(401, f"This needs an API key: Authorization: Bearer {PREFIX}…", _BEARER)
    return given[0]


def address_of(client: str | None) -> str:
    """What requests without a key are counted by: the address, of IPv6 the network of one site."""
    try:
        ip = ipaddress.ip_address(client or "")
    except ValueError:
        return client or "unknown"
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
