"""What a provider says, made fit for a database's row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import orjson

from agentflow.core.events import Failed, Progressed, Succeeded
from agentflow.core.providers import Outcome
from agentflow.core.results import Result
from agentflow.errors import Unstorable
from agentflow.types import Json


def clean(value: Json) -> Json:
    """JSON without what databases refuse: NUL and lone surrogates in text, NaN and infinity."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(str(k)): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return value


def cleaned(outcome: Outcome) -> Outcome:
    """The outcome with clean text and JSON. Raises `Unstorable` for an output that is no JSON."""
    match outcome:
        case Succeeded(result=result):
            return replace(outcome, result=_result(result))
        case Failed(error=error):
            return replace(outcome, error=replace(error, message=clean(error.message)))
        case Progressed(message=str(message)):
            return replace(outcome, message=clean(message))
        case _:
            return outcome


def written(value: Any) -> bytes:
    """As JSON, if it nests eight levels less deep than `orjson` can write: a list of histories, or
    a callback, has it that deep inside. Raises `TypeError`."""
    return orjson.dumps([[[[[[[[value]]]]]]]])[8:-8]


def _result(result: Result) -> Result:
    try:
        output = clean(result.output)
        orjson.dumps(output)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unstorable(f"The result is no JSON: {error}") from None
    return replace(result, output=output, text=clean(result.text), usage=dict(result.usage))
