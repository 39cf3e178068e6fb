"""What a create asks for, read from its path and body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from agentflow_replicate.simulator.script import Script

EVENTS = ("start", "output", "logs", "completed")

_VERSION = re.compile(r"[\w.-]+/[\w.-]+|([\w.-]+/[\w.-]+:)?[0-9a-f]{64}")


class NoSuchModel(Exception):
    """The path names a model called `missing`; every other name is as good as any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`target` is one of `model`, `version` and `deployment`, with its name."""

    target: Mapping[str, str]
    input: dict[str, Any]
    script: Script
    webhook: str | None
    events: Sequence[str]

    @classmethod
    def read(cls, kind: str, path: Mapping[str, str], body: bytes) -> Order:
        """Raises `NoSuchModel`, or `ValueError` with what is wrong."""
        asked = orjson.loads(body)
        if not isinstance(asked, dict) or not isinstance(asked.get("input"), dict):
            raise ValueError("input is required")
        webhook = asked.get("webhook")
        if webhook is not None and not str(webhook).startswith(("http://", "https://")):
            raise ValueError("webhook is not a URL")
        events = asked.get("webhook_events_filter") or ("output", "completed")
        if not isinstance(events, list | tuple) or any(each not in EVENTS for each in events):
            raise ValueError(f"webhook_events_filter holds only {', '.join(EVENTS)}")
        return cls(
            target=_target(kind, path, asked),
            input=asked["input"],
            script=_script(asked["input"].get("simulate")),
            webhook=webhook,
            events=events,
        )


def _target(kind: str, path: Mapping[str, str], asked: Mapping[str, Any]) -> dict[str, str]:
    if kind == "version":
        version = str(asked.get("version"))
        if not _VERSION.fullmatch(version):
            raise ValueError("The specified version does not exist (or you may not use it).")
        return {"version": version}
    if path["name"] == "missing":
        raise NoSuchModel
    return {kind: f"{path['owner']}/{path['name']}"}


def _script(given: Any) -> Script:
    try:
        return Script.model_validate({} if given is None else given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("input", "simulate", *first["loc"])))
        raise ValueError(f"{place}: {first['msg']}") from None
