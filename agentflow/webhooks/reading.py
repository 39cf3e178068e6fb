"""From a stored delivery to its facts, by the provider's own parser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentflow.core.events import dump_event, load_event, name_of
from agentflow.core.providers import Delivery, Fact, Outcome, Provider
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
    ids = [fact.external_id, getattr(fact.event, "external_id", None), fact.token, fact.id]
    if not all(id is None or (isinstance(id, str) and 1 <= len(id) <= 255) for id in ids):
        raise PluginError(f"the parser of {name} gave an external id that is no short text")
    event = load_event(name_of(fact.event), dump_event(fact.event))
    assert isinstance(event, Outcome), "it was one before"
    return replace(fact, event=event)


def type_of(provider: Provider, delivery: Delivery) -> str | None:
    """What `@app.on_webhook` selects by; None where the body does not say."""
    try:
        said = provider.typer(delivery)
    except Exception:  # a body that is no JSON has no type
        return None
    return said if isinstance(said, str) else None
