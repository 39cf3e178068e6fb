"""The small vocabulary every other module shares: JSON, identifiers, instants."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NewType, TypeAlias

from uuid_utils.compat import uuid7

VERSION = "0.1.0"
"""Of the distribution `agentflow-core`; a test compares it with pyproject.toml."""

Json: TypeAlias = Any
"""Whatever `orjson` reads: str, int, float, bool, None, list or dict of these."""

JsonObject: TypeAlias = dict[str, Any]

JobId = NewType("JobId", str)
"""`job_` and the 32 hex digits of a UUIDv7 (RFC 9562), so that ids sort by time of creation."""

Token = NewType("Token", str)
"""What an attempt is found by in a webhook's URL; unguessable, but no authentication."""

DEFAULT_TENANT = "default"


def new_job_id() -> JobId:
    return JobId(f"job_{uuid7().hex}")


def new_id(prefix: str) -> str:
    """A time-ordered identifier, `prefix_` and 32 hex digits."""
    return f"{prefix}_{uuid7().hex}"


def utcnow() -> datetime:
    return datetime.now(UTC)
