"""The operator's own prices: a JSON file, read and checked at the start."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from agentflow.core.pricing import Price
from agentflow.errors import SettingsError

_NAMES = frozenset(field.name for field in fields(Price))


def read_prices(path: Path) -> list[Price]:
    """`{"prices": [{"since": "2026-11-05", "task": "openai.*", …}]}`; numbers are read as the
    decimals they are written as. Raises `SettingsError`, naming the entry."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal)
    except (OSError, ValueError) as error:
        raise SettingsError(f"AGENTFLOW_PRICES: {path} cannot be read: {error}") from None
    entries = said.get("prices") if isinstance(said, dict) else None
    if not isinstance(entries, list):
        raise SettingsError(f'AGENTFLOW_PRICES: {path} is {{"prices": [{{…}}]}}')
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_price(entry))
        except (TypeError, ValueError, AttributeError) as error:
            said = f"AGENTFLOW_PRICES: {path}, entry {number}: {error}"
            raise SettingsError(said) from None
    return found


def _price(entry: Any) -> Price:
    if not isinstance(entry, dict) or "since" not in entry:
        raise ValueError("an object with since, the first day it holds")
    if unknown := entry.keys() - _NAMES:
        raise ValueError(f"there is no {', '.join(sorted(unknown))}; {', '.join(sorted(_NAMES))}")
    for name in ("task", "model", "currency", "source"):
        if not isinstance(entry.get(name, ""), str):
            raise ValueError(f"{name} is a text")
    for name in ("units", "within"):
        if not isinstance(entry.get(name, {}), dict):
            raise ValueError(f"{name} is an object")
    per = entry.get("per", Decimal(1))
    if not isinstance(per, Decimal) or per != per.to_integral_value():
        raise ValueError("per is a number of units, from 1")
    try:
        since = date.fromisoformat(entry["since"])
    except (TypeError, ValueError):
        raise ValueError("since is a day, as 2026-11-05") from None
    return Price(**{**entry, "since": since, "per": int(per)})
