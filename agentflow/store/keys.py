"""API keys: `af_<id>_<secret>`, of which only a hash is stored, and the rows they are found by."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias, get_args

from tortoise.connection import get_connection

from agentflow.errors import NotFound
from agentflow.store.queries import Reader
from agentflow.store.rows import Row, instant
from agentflow.store.sql import Sql

KeyScope: TypeAlias = Literal["read", "write", "admin"]
"""Each includes those before it."""

SCOPES: tuple[str, ...] = get_args(KeyScope)

PREFIX = "af_"
_KEY = re.compile(rf"{PREFIX}([a-z0-9]{{12,16}})_[A-Za-z0-9_-]{{40,64}}")
_ID_LETTERS = string.ascii_lowercase + string.digits
_SECRET_LETTERS = string.ascii_letters + string.digits

_COLUMNS = ("id", "tenant", "name", "scope", "hash", "created_at", "expires_at", "revoked_at")
_SELECT = ", ".join(f'"{c}"' for c in _COLUMNS)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is stored. `id` is its public part."""

    id: str
    tenant: str
    name: str
    scope: str
    hash: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def opens(self, presented: str, now: datetime) -> bool:
        """Whether `presented` is this very key, and the key is still good."""
        same = hmac.compare_digest(self.hash, digest(presented))
        return same and self.good(now)

    def good(self, now: datetime) -> bool:
        expired = self.expires_at is not None and self.expires_at <= now
        return self.revoked_at is None and not expired and self.scope in SCOPES


def new_key() -> tuple[str, str]:
    """The id and the whole of a new key; its secret has 256 bits."""
    id = "".join(secrets.choice(_ID_LETTERS) for _ in range(12))
    secret = "".join(secrets.choice(_SECRET_LETTERS) for _ in range(43))
    return id, f"{PREFIX}{id}_{secret}"


def key_id(presented: str) -> str | None:
    """The public part of what looks like a key."""
    found = _KEY.fullmatch(presented)
    return found[1] if found else None


def digest(key: str) -> str:
    """What is stored instead of a key. A fast hash does: nobody guesses 256 bits."""
    return hashlib.sha256(key.encode()).hexdigest()


async def add_key(key: Key) -> None:
    sql = Sql(get_connection("default"))
    await sql.insert("agentflow_keys", _COLUMNS, [[getattr(key, c) for c in _COLUMNS]])


async def find_key(id: str) -> Key | None:
    """Raises `StoreUnavailable`."""
    sql = Reader()
    rows = await sql.rows(
        f'SELECT {_SELECT} FROM "agentflow_keys" WHERE "id" = {sql.mark(1)}', [id]
    )
    return _key(rows[0]) if rows else None


async def list_keys(tenant: str | None = None) -> list[Key]:
    """The keys of a tenant, or all of them, oldest first."""
    sql = Reader()
    where, values = (f'WHERE "tenant" = {sql.mark(1)}', [tenant]) if tenant else ("", [])
    rows = await sql.rows(
        f'SELECT {_SELECT} FROM "agentflow_keys" {where} ORDER BY "created_at", "id"', values
    )
    return [_key(row) for row in rows]


async def revoke_key(id: str, now: datetime) -> Key:
    """The key, good for nothing from now on, or from when it was revoked before. Raises
    `NotFound`."""
    sql = Sql(get_connection("default"))
    await sql.rows(
        f'UPDATE "agentflow_keys" SET "revoked_at" = {sql.mark(1)}'
        f' WHERE "id" = {sql.mark(2)} AND "revoked_at" IS NULL',
        [now, id],
    )
    found = await find_key(id)
    if found is None:
        raise NotFound(f"There is no key {id}")
    return found


async def any_key(now: datetime) -> bool:
    """Whether anybody could be let in."""
    return any(key.good(now) for key in await list_keys())


def _key(row: Row) -> Key:
    times = {c: instant(row[c]) for c in _COLUMNS if c.endswith("_at")}
    return Key(**{c: row[c] for c in _COLUMNS} | times)
