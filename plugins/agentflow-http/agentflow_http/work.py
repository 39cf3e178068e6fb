"""How work stands, by an answer or by a webhook: one translation for both."""

from __future__ import annotations

import math
from typing import Any

from agentflow import (
    Canceled,
    Changed,
    Delivery,
    Fact,
    Failed,
    Progressed,
    ProviderError,
    Result,
    Succeeded,
)
from agentflow_http.answers import files
from agentflow_http.asking import word
from agentflow_http.auth import Redaction
from agentflow_http.pointer import at
from agentflow_http.service import Reading, Service, Webhook

State = Progressed | Changed | Succeeded | Failed | Canceled
LONGEST = 255


def state(document: Any, reading: Reading, redaction: Redaction) -> State | None:
    """What a document says of the work; None where it says no status. `Changed` is a status that
    nobody declared. A success has what is at `result`, or the whole document."""
    said = status(document, reading)
    match said:
        case None:
            return None
        case _ if said in reading.succeeded:
            found = document if reading.result is None else at(document, reading.result)
            return Succeeded(result(found, reading, redaction))
        case _ if said in reading.failed:
            why = at(document, reading.error) if reading.error is not None else None
            return Failed(ProviderError(redaction.text(_sentence(why, said))))
        case _ if said in reading.canceled:
            return Canceled()
        case _ if said in reading.running:
            return Progressed(_fraction(document, reading), said)
        case _:
            return Changed()


def status(document: Any, reading: Reading) -> str | None:
    """The status as a word: `true` and `7` are words too."""
    found = at(document, reading.status)
    return word(found)[:LONGEST] if isinstance(found, str | int | float) else None


def result(found: Any, reading: Reading, redaction: Redaction) -> Result:
    shown = redaction.document(found)
    return Result(output=shown, artifacts=files(found, reading.artifacts))


def identity(document: Any, pointer: str) -> str | None:
    """The service's id of the work: a text, or a number as text. Dots alone are none: in a path
    they would lead elsewhere."""
    found = at(document, pointer)
    if isinstance(found, bool) or not isinstance(found, str | int) or found in (".", ".."):
        return None
    return str(found) if 1 <= len(str(found)) <= LONGEST else None


def facts(delivery: Delivery, service: Service) -> list[Fact]:
    """What a webhook says; nothing of a body in which neither an id nor a token is found."""
    hook = service.webhook
    assert hook is not None, "only services with webhooks are asked"
    try:
        document = delivery.json
    except ValueError:
        return []
    about = identity(document, hook.id)
    token = identity(document, hook.token) if hook.token is not None else None
    found = _told(document, hook, service)
    if found is None or (about is None and token is None and delivery.token is None):
        return []
    event = identity(document, hook.event) if hook.event is not None else None
    return [Fact(found, external_id=about, token=token, id=event)]


def _told(document: Any, hook: Webhook, service: Service) -> State | None:
    found = state(document, hook, service.redaction)
    if isinstance(found, Succeeded) and service.thin:
        brought = hook.result is not None and at(document, hook.result) is not None
        return found if brought else Changed()
    return found


def _sentence(why: Any, said: str) -> str:
    match why:
        case str() if why:
            return why[:2000]
        case None | "":
            return f"The service says: {said}."
        case _:
            return str(why)[:2000]


def _fraction(document: Any, reading: Reading) -> float | None:
    found = at(document, reading.progress) if reading.progress is not None else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return min(1.0, max(0.0, float(found)))
