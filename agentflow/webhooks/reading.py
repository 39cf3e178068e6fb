"""From a stored delivery to its facts, by the provider's own parser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentflow.core.providers import Delivery, Fact, Outcome, Provider
from agentflow.core.soundness import is_id, sound
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
    return [_checked(fact, provider.name) for fact in provider.parser(delivery)]


def _checked(fact: Any, name: str) -> Fact:
    """The fact as it would be read back: one that cannot be stored must not reach the batch, where
    it would stop its neighbours."""
    if not isinstance(fact, Fact) or not isinstance(fact.event, Outcome):
        raise PluginError(f"the parser of {name} returned something that is no Fact")
    if not all(map(is_id, (fact.external_id, fact.token, fact.id))):
        raise PluginError(f"the parser of {name} gave an id that is no short text")
    try:
        return replace(fact, event=sound(fact.event))
    except ValueError as error:
        raise PluginError(f"the parser of {name}: {error}") from None


def type_of(provider: Provider, delivery: Delivery) -> str | None:
    """What `@app.on_webhook` selects by; None where the body does not say."""
    try:
        said = provider.typer(delivery)
    except Exception:  # a body that is no JSON has no type
        return None
    return said if isinstance(said, str) else None
