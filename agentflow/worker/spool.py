"""Outcomes the writer has not confirmed yet, on disk: what was paid for is not forgotten.

One line per outcome is appended before it is sent; the file is emptied when all are confirmed.
It is not synced: it survives the death of the process, not a power cut.
"""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import structlog

from agentflow.core.events import Envelope
from agentflow.transport.wire import dump_envelope, load_envelope

log = structlog.get_logger(__name__)


class Spool:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: set[str] = set()
        self._file: int | None = None

    def recover(self) -> list[Envelope]:
        """What an earlier process left unconfirmed; a line torn by its death is left out."""
        if not self._path.exists():
            return []
        found: dict[str, Envelope] = {}
        for line in self._path.read_bytes().splitlines():
            try:
                envelope = load_envelope(orjson.loads(line))
            except (ValueError, KeyError) as error:
                log.warning("A line of the spool is unreadable", error=str(error)[:200])
                continue
            found[f"{envelope.job_id}/{envelope.id}"] = envelope
        self._open |= found.keys()
        return list(found.values())

    def add(self, envelope: Envelope) -> None:
        """Keep it until `confirmed`."""
        self._open.add(f"{envelope.job_id}/{envelope.id}")
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, orjson.dumps(dump_envelope(envelope)) + b"\n")

    def confirmed(self, envelope: Envelope) -> None:
        self._open.discard(f"{envelope.job_id}/{envelope.id}")
        if not self._open and self._path.exists():
            os.truncate(self._path, 0)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
