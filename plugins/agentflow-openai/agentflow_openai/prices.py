"""What OpenAI's models cost, as far as we know, and what a request uses at most.

OpenAI's answers have no price. These figures were read in public copies of its price page and not
at OpenAI itself, which is why there are few: models whose price depends on the length of the
request, and those no two sources agree on, are left out and have no known cost.
`AGENTFLOW_PRICES` adds and replaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import orjson

from agentflow import Price, Result

OPENAI = "https://api.openai.com/v1"

_READ = date(2026, 6, 21)
_SOURCE = "copies of developers.openai.com/api/docs/pricing, standard tier, June 2026"
_USUAL = frozenset({None, "auto", "default"})

PER_MESSAGE = 16
"""Tokens that mark the parts of a request, generously."""

_CACHED = {"cached_input_tokens": "input_tokens"}


def _language(model: str, input: str, cached: str, output: str) -> list[Price]:
    """Of a model and its dated snapshots."""
    units = {"input_tokens": input, "cached_input_tokens": cached, "output_tokens": output}
    return [
        Price(_READ, units, model=name, per=1_000_000, within=_CACHED, source=_SOURCE)
        for name in (model, f"{model}-20??-??-??")
    ]


PRICES = (
    *_language("gpt-4.1", "2.00", "0.50", "8.00"),
    *_language("gpt-4o-mini", "0.15", "0.075", "0.60"),
    Price(
        _READ,
        {"input_tokens": "0.02"},
        model="text-embedding-3-small",
        per=1_000_000,
        source=_SOURCE,
    ),
    Price(
        _READ,
        {"input_tokens": "0.13"},
        model="text-embedding-3-large",
        per=1_000_000,
        source=_SOURCE,
    ),
)


def prices(settings: Any) -> Sequence[Price]:
    """Other services under the same API have prices of their own."""
    return PRICES if str(settings.base_url or OPENAI).rstrip("/") == OPENAI else ()


def billed_as(input: Any, result: Result | None) -> list[str]:
    """The model as it answered and as it was asked for. Another tier, a slow window, a batch and
    tools that OpenAI runs have other prices: under a name of its own, which the table has not."""
    asked = input if isinstance(input, dict) else {}
    output = result.output if result is not None and isinstance(result.output, dict) else {}
    options: dict[str, Any] = asked.get("options") or {}
    tier = options.get("service_tier")
    special = tier if tier not in _USUAL else None
    if "background_options" in options:
        special = special or "window"
    if "counts" in output:
        special = "batch"
    if asked.get("hosted_tools"):
        special = special or "hosted tools"
    mark = f" ({special})" if special else ""
    names = [each.get("model") for each in (output, asked)]
    return list(dict.fromkeys(f"{name}{mark}" for name in names if isinstance(name, str) and name))


def most_of_request(input: Any) -> Mapping[str, float] | None:
    """The tokens of a `ModelRequest` at most: a token is a byte of text at least. None where
    nobody can tell: no limit of the output, pictures, options or tools of which we know nothing."""
    limit = input.get("max_output_tokens")
    unknown = input.get("options") or input.get("hosted_tools")
    if not limit or unknown or any(map(_pictures, input["messages"])):
        return None
    said = [input["messages"], input.get("tools") or [], input.get("output_schema") or {}]
    parts = len(input["messages"]) + len(input.get("tools") or [])
    return {
        "input_tokens": len(orjson.dumps(said)) + PER_MESSAGE * (parts + 2),
        "output_tokens": limit,
    }


def most_of_texts(input: Any) -> Mapping[str, float]:
    """The same of texts to embed."""
    return {"input_tokens": sum(len(text.encode()) + PER_MESSAGE for text in input["input"])}


def _pictures(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part.get("type") != "text" for part in content)
