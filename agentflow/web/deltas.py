"""Live text as a client of one job gets it: where it is, and what comes next for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import orjson
from pydantic import BaseModel, Field
from sse_starlette import ServerSentEvent

from agentflow.transport.live import CHANNELS, Said
from agentflow.types import JsonObject

MOST = 16_384
"""Characters of one event."""

_CURSOR = re.compile(r"(\d{1,9})(?::(\d{1,9})((?:\.\d{1,12}){1,8}))?", re.ASCII)


class Delta(BaseModel):
    """A piece of what a call says while it runs. It was stored nowhere; the result is the truth."""

    attempt: int
    channel: Literal["text", "logs"]
    offset: int = Field(description="Characters of this channel before it, in this attempt.")
    text: str


class Gap(BaseModel):
    """Live text that is lost to this stream."""

    attempt: int
    channel: Literal["text", "logs"]
    offset: int
    missing: int | None = Field(description="Characters; null: nobody knows, maybe none.")


@dataclass(slots=True)
class Position:
    """How far a client is in the history, and in the live text of which attempt: how many
    characters of each channel it has."""

    seq: int = -1
    attempt: int = 0
    at: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, said: str) -> Position:
        """From an event's id: `12`, or `12:1.340.20`. Raises `ValueError`."""
        match = _CURSOR.fullmatch(said)
        if match is None:
            raise ValueError("the id of an event")
        seq, attempt, lengths = match.groups()
        counted = [int(n) for n in lengths.split(".")[1:]] if lengths else []
        return cls(int(seq), int(attempt or 0), dict(zip(CHANNELS, counted, strict=False)))

    @property
    def id(self) -> str:
        lengths = ".".join(str(self.at.get(channel, 0)) for channel in CHANNELS)
        return f"{self.seq}:{self.attempt}.{lengths}" if self.attempt else str(self.seq)

    def news(self, said: Said | None) -> Iterator[ServerSentEvent]:
        """What the client does not have yet, as `delta`, and where something is missing, as `gap`.
        Text that is added meanwhile is given too."""
        if said is None or said.attempt < self.attempt:
            return
        if said.attempt > self.attempt:
            self.attempt, self.at = said.attempt, {}
        for channel in CHANNELS:
            while channel in said.tapes and self.at.get(channel, 0) < said.tapes[channel].end:
                if said.attempt != self.attempt:
                    return
                yield self._next(said, channel)

    def unsure(self, said: Said | None) -> Iterator[ServerSentEvent]:
        """At the end of the job: gaps of unknown length, for a client that was given text whose
        end was not heard."""
        heard = said is not None and said.attempt == self.attempt and said.ended
        for channel in CHANNELS if self.attempt and not heard else ():
            if self.at.get(channel):
                yield self._event("gap", channel, self.at[channel], missing=None)

    def _next(self, said: Said, channel: str) -> ServerSentEvent:
        at = self.at.get(channel, 0)
        start, text = said.tapes[channel].read(at, MOST)
        if start > at:
            self.at[channel] = start
            return self._event("gap", channel, at, missing=start - at)
        self.at[channel] = at + len(text)
        return self._event("delta", channel, at, text=text)

    def _event(self, kind: str, channel: str, offset: int, **more: object) -> ServerSentEvent:
        data: JsonObject = {"attempt": self.attempt, "channel": channel, "offset": offset, **more}
        return ServerSentEvent(data=orjson.dumps(data).decode(), event=kind, id=self.id)
