"""From `AGENTFLOW_HTTP_SERVICES` to the services: JSON, or a path to JSON or TOML."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentflow import SettingsError
from agentflow_http.service import TASK, Service

VARIABLE = "AGENTFLOW_HTTP_SERVICES"


def services(text: str) -> dict[str, Service | str]:
    """The services by name; of one that is declared wrong, what is wrong. Raises `SettingsError`
    where nothing can be read at all."""
    if not text.strip():
        return {}
    given = _document(text.strip())
    if not isinstance(given, dict):
        raise SettingsError(f"{VARIABLE}: it is an object of services by their names")
    for name in given:
        if not TASK.fullmatch(name):
            raise SettingsError(f"{VARIABLE}: {name!r} is no service's name: a-z, then a-z, 0-9, _")
    return {name: _service(each) for name, each in given.items()}


def _document(text: str) -> Any:
    try:
        if text.startswith("{"):
            return json.loads(text)
        content = Path(text).read_text(encoding="utf-8")
        return tomllib.loads(content) if text.endswith(".toml") else json.loads(content)
    except OSError as error:
        raise SettingsError(f"{VARIABLE}: the file cannot be read: {error.strerror}") from None
    except ValueError as error:  # of either format; its message quotes no more than a place
        raise SettingsError(f"{VARIABLE}: {type(error).__name__}: {str(error)[:200]}") from None


def _service(given: Any) -> Service | str:
    try:
        return Service.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        return "; ".join(": ".join(filter(None, _said(e))) for e in found[:5])


def _said(error: Any) -> tuple[str, str]:
    """Where it is, if not everywhere, and what is wrong."""
    return ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
