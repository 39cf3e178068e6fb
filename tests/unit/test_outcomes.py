"""From what a call came to, to a fact that can be stored and shown."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from agentflow import Delivery, Fact, Provider, Result, Succeeded, Unstorable
from agentflow.errors import PluginError
from agentflow.webhooks.reading import facts_of
from agentflow.worker.outcomes import outcome_of, retry_after

TASK = Provider("acme").task("any")(lambda call, input: input)
MORNING = "Sun, 06 Nov 1994 08:49:37 GMT"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_an_output_too_deep_to_be_shown_later_is_unstorable() -> None:
    """It is shown in lists, in histories and in callbacks, each some levels deeper."""
    outcome_of(nested(240), TASK)
    with pytest.raises(Unstorable):
        outcome_of(nested(250), TASK)


def test_one_that_a_webhook_brings_is_no_fact() -> None:
    provider = Provider("acme")
    provider.parse(lambda delivery: [Fact(Succeeded(Result(output=nested(250))), external_id="x")])
    with pytest.raises(PluginError):
        facts_of(provider, Delivery("acme", b""))


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "9" * 11}, 86_400.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT", "date": MORNING}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:00 GMT", "date": MORNING}, 0.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 2094 08:50:07 GMT", "date": "today"}, 86_400.0),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_a_number_or_a_date_by_the_sender_s_clock(
    said: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(httpx.Response(429, headers=said)) == seconds
