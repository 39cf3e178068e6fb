"""API keys in the database of a running application."""

from __future__ import annotations

from datetime import timedelta

from agentflow.store.keys import Key, add_key, digest, new_key
from agentflow.types import DEFAULT_TENANT, utcnow


async def new(
    tenant: str = DEFAULT_TENANT, scope: str = "write", *, expires: float | None = None
) -> str:
    """A stored key, whole; `expires` is in seconds."""
    id, key = new_key()
    now = utcnow()
    ends = None if expires is None else now + timedelta(seconds=expires)
    await add_key(Key(id, tenant, f"{scope} of {tenant}", scope, digest(key), now, ends))
    return key


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
