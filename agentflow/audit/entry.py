"""One entry of a history, read back."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentflow.core.events import EVENTS, Event, Source, load_event
from agentflow.core.job import Status
from agentflow.core.transition import RANDOM_BYTES, Disposition
from agentflow.store.rows import Row, instant, loads
from agentflow.types import JsonObject


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of `agentflow_history`. `random` is None where it is not what a decision gets."""

    seq: int
    tenant: str
    envelope_id: str
    event: Event
    disposition: Disposition
    reason: str
    status: Status
    patch: JsonObject
    check_at: datetime | None
    checks: int
    decided_at: datetime
    random: bytes | None
    machine: int


def entry_from(row: Row) -> Entry:
    """Raises `ValueError` and its like for what agentflow never writes."""
    Source(row["source"])
    if row["event"] not in EVENTS:
        raise ValueError(f"no event is called {row['event']!r}")
    timers = _object(row, "timers")
    return Entry(
        seq=row["seq"],
        tenant=row["tenant"],
        envelope_id=row["envelope_id"],
        event=load_event(row["event"], _object(row, "fields")),
        disposition=Disposition(row["disposition"]),
        reason=row["reason"],
        status=Status(row["status"]),
        patch=_object(row, "patch"),
        check_at=instant(timers["check_at"]),
        checks=int(timers["checks"]),
        decided_at=instant(row["decided_at"]),
        random=_random(row["random"]),
        machine=_machine(row["machine"]),
    )


def _object(row: Row, column: str) -> JsonObject:
    value: Any = loads(row[column])
    if not isinstance(value, dict):
        raise ValueError(f"{column} is no object")
    return value


def _random(text: str) -> bytes | None:
    try:
        random = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return random if len(random) == RANDOM_BYTES else None


def _machine(version: int) -> int:
    if version < 1:
        raise ValueError(f"there was no machine {version}")
    return version
