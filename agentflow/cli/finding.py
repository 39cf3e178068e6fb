"""What `agentflow doctor` says of one thing it looked at."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

State: TypeAlias = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    check: str
    state: State
    said: str
