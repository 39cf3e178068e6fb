"""From a stored delivery to its facts, by the provider's own parser."""

from __future__ import annotations

from agentflow.core.providers import Delivery, Fact, Provider
from agentflow.errors import PluginError
from agentflow.store.rows import Row, instant, loads


def delivery_of(row: Row) -> Delivery:
    """The delivery as it was verified; replaying it is reading it again."""
    key = row["dedup_key"]
    return Delivery(
        provider=row["provider"],
        body=bytes(row["body"]),
        headers=loads(row["headers"]),
        delivery_id=key.removeprefix("id:") if key and key.startswith("id:") else None,
        token=row["token"],
        received_at=instant(row["received_at"]),
    )


def facts_of(provider: Provider, delivery: Delivery) -> list[Fact]:
    """What the delivery says. Raises whatever the parser raises, and `PluginError` for garbage."""
    if provider.parser is None:
        return []
    facts = list(provider.parser(delivery))
    if not all(isinstance(fact, Fact) for fact in facts):
        raise PluginError(f"the parser of {provider.name} returned something that is no Fact")
    return facts


def type_of(provider: Provider, delivery: Delivery) -> str | None:
    """What `@app.on_webhook` selects by; None where the body does not say."""
    try:
        return provider.typer(delivery)
    except Exception:  # a body that is no JSON has no type
        return None
