"""The provider `openai`: its settings, its webhooks, its errors."""

from __future__ import annotations

from typing import Any

from agentflow import Changed, Delivery, Fact, Limit, Provider, StandardWebhooks
from agentflow_openai.failures import failure
from agentflow_openai.prices import billed_as, prices
from agentflow_openai.settings import OpenAISettings

provider = Provider(
    "openai",
    settings=OpenAISettings,
    keys="api_key",
    limits=Limit(by="model"),  # which is how OpenAI counts: a 429 is about one model
    webhooks="account",
    scheme=StandardWebhooks(secret="webhook_secret"),
    description="OpenAI, or another service that speaks its API",
    prices=prices,
    loads="agentflow_openai.session",
)
provider.translate(failure)
provider.billed_as(billed_as)

ABOUT_WORK = frozenset(
    f"{work}.{end}"
    for work, ends in (
        ("response", ("completed", "failed", "cancelled", "incomplete")),
        ("batch", ("completed", "failed", "cancelled", "expired")),
    )
    for end in ends
)
"""Types of webhooks that tell the end of work of ours; the many others are stored and ignored."""

LONGEST_ID = 255
"""Characters; longer ones name no work of ours."""


@provider.parse
def parse(delivery: Delivery) -> list[Fact]:
    """A webhook is thin: it names a type and an object, which is then fetched."""
    try:
        event: Any = delivery.json
    except ValueError:
        return []
    match event:
        case {"type": str(type), "data": {"id": str(id)}} if (
            type in ABOUT_WORK and 1 <= len(id) <= LONGEST_ID
        ):
            return [Fact(Changed(), external_id=id)]
        case _:
            return []
