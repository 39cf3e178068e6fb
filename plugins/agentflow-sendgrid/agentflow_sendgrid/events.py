"""The Event Webhook: an array of events, each about one recipient of one mail.

The types are those of SendGrid's "Event Webhook Reference". Nothing here assumes that a value has
the right type, and an element that makes no sense is left out: refused, the whole batch would come
again for a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from agentflow import Delivery, Fact, Failed, Progressed, ProviderError, Result, Succeeded
from agentflow_sendgrid.mail import TO, TOKEN
from agentflow_sendgrid.reading import elements

State: TypeAlias = Progressed | Succeeded | Failed

UNDER_WAY = frozenset({"processed", "deferred"})
LATER = frozenset(
    {"open", "click", "spamreport", "unsubscribe", "group_unsubscribe", "group_resubscribe"}
)
"""What happens to a mail that was delivered: kept in the history of its job, which has ended."""

LONGEST = 2000
"""Characters of what others said that are kept."""

SHOWN = ("event", "email", "timestamp", "response", "reason", "status", "type", "sg_message_id")


def facts(delivery: Delivery) -> list[Fact]:
    """One fact for each event about a mail of ours."""
    found = (element(event) for event in elements(delivery))
    return [each for each in found if each is not None]


def element(event: Any) -> Fact | None:
    """The fact of one event; None for one that is not about the recipient a job follows."""
    if not isinstance(event, Mapping) or (token := _name(event.get(TOKEN))) is None:
        return None
    if str(event.get("email", "")).lower() != event.get(TO):
        return None  # of a copy
    state = fact(event)
    return None if state is None else Fact(state, token=token, id=_name(event.get("sg_event_id")))


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 1 <= len(value) <= 255 else None


def fact(event: Mapping[str, Any]) -> State | None:
    """What an event says; None for types unknown to us."""
    match event.get("event"):
        case "delivered":
            return Succeeded(Result(output=shown(event)))
        case "bounce" | "dropped" as kind:
            why = event.get("reason") or event.get("response") or "SendGrid says no reason."
            return Failed(
                ProviderError(f"The mail was {_WORDS[kind]}: {why}"[:LONGEST], detail=shown(event))
            )
        case str(kind) if kind in UNDER_WAY | LATER:
            why = event.get("response") or event.get("url")
            return Progressed(message=f"{kind}: {why}"[:500] if isinstance(why, str) else kind)
        case _:
            return None


_WORDS = {"bounce": "refused by its receiver", "dropped": "dropped by SendGrid"}


def shown(event: Mapping[str, Any]) -> dict[str, Any]:
    """The members of an event that tell what became of the mail, as far as a row has room."""
    found: dict[str, Any] = {}
    for name in SHOWN:
        match event.get(name):
            case str(text):
                found[name] = text[:LONGEST]
            case bool():
                pass
            case int(number) if abs(number) < 2**53:
                found[name] = number
    return found
