"""Logs of a process: a sentence and its fields, for people at a terminal or as JSON; one line each.

Every logger goes through one renderer, the chatty ones of libraries from WARNING on. What could be
a secret, an input or a body is not written, whoever logs it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import orjson
import structlog
from opentelemetry import trace

CHATTY = (
    "aiosqlite", "asyncio", "httpcore", "httpcore2", "httpx", "httpx2", "taskiq", "tortoise",
    "uvicorn",
)  # fmt: skip

_SECRET = re.compile(
    r"token|secret|signature|authorization|cookie|passw|api_?key|^(input|body|headers|nonce)$", re.I
)
_LEVELS = {"critical": 31, "error": 31, "warning": 33, "info": 0, "debug": 2}
_LONGEST = 500
_LONGEST_TRACE = 8000
_TRACES = frozenset({"exception", "stack"})
_FIRST = ("timestamp", "level", "event", "logger")
_EVIDENT = frozenset({"job_id", "task"})
"""Fields whose values say what they are."""


def configure(
    level: str = "INFO",
    *,
    stream: TextIO | None = None,
    form: Literal["text", "json"] = "text",
) -> None:
    """Log to `stream`, by default standard error; text is colored if it is a terminal.

    Raises `ValueError` for a level there is not.
    """
    target = stream or sys.stderr
    shared = _shared(machine=form == "json")
    renderer = JsonRenderer() if form == "json" else Renderer(colored=target.isatty())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _shared(*, machine: bool) -> list[structlog.typing.Processor]:
    """For our own loggers and for those of libraries."""
    clock = ("iso", True) if machine else ("%H:%M:%S", False)
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        *([structlog.stdlib.add_logger_name] if machine else []),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt=clock[0], utc=clock[1]),
        with_trace,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        without_secrets,
    ]


def without_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor."""
    return {k: "…" if _SECRET.search(k) else v for k, v in event.items()}


def with_trace(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: the id of the trace this is a part of."""
    found = trace.get_current_span().get_span_context()
    if found.is_valid:
        event.setdefault("trace_id", f"{found.trace_id:032x}")
    return event


class JsonRenderer:
    """`{"timestamp":"2026-11-23T12:03:04.5Z","level":"warning","event":"Webhook refused",…}`"""

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        said = {k: event.pop(k) for k in _FIRST if k in event}
        said["event"] = _short("event", str(said.get("event", "")))
        said |= {k: _short(k, v) for k, v in event.items() if v is not None}
        try:
            return orjson.dumps(said, default=str).decode()
        except TypeError:  # what is no JSON is text
            return json.dumps({k: str(v) for k, v in said.items()})


class Renderer:
    """`12:03:04 WARNING Webhook refused  provider=replicate why='…'`; INFO is left out."""

    def __init__(self, *, colored: bool) -> None:
        self._colored = colored

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        level = event.pop("level", "info")
        said = [self._paint(2, event.pop("timestamp", "--:--:--"))]
        if level != "info":
            said.append(self._paint(_LEVELS.get(level, 0), level.upper()))
        said.append(_line(event.pop("event", "")))
        place = event.pop("exception", None) or event.pop("stack", None)
        fields = " ".join(self._field(k, v) for k, v in event.items() if v is not None)
        line = " ".join(said) + (f"  {fields}" if fields else "")
        return f"{line}\n{place}" if place else line

    def _field(self, name: str, value: Any) -> str:
        key = "" if name in _EVIDENT else self._paint(2, f"{name}=")
        return f"{key}{_value(value)}"

    def _paint(self, code: int, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colored and code else text


def _short(name: str, value: Any) -> Any:
    most = _LONGEST_TRACE if name in _TRACES else _LONGEST
    return f"{value[:most]}…" if isinstance(value, str) and len(value) > most else value


def _value(value: Any) -> str:
    text = _line(value)
    return repr(text) if not text or " " in text else text


def _line(value: Any) -> str:
    """One line that can neither end early nor paint the terminal, whatever a stranger sent."""
    text = str(value)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text if text.isprintable() else repr(text)[1:-1]
