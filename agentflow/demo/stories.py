"""The dozen: what befalls each prediction, and how it has to end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agentflow.demo import evidence
from agentflow.demo.evidence import Check


@dataclass(frozen=True, slots=True)
class Story:
    """`simulate` is what the simulator is told (its `Script`); `cancel_after` is in seconds."""

    name: str
    check: Check
    simulate: dict[str, Any]
    ends: str = "succeeded"
    cancel_after: float | None = None
    input: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        script = {**self.simulate, "key": self.name}
        input = {"prompt": f"a lighthouse, {self.name}", "simulate": script}
        object.__setattr__(self, "input", {"model": "acme/painter", "input": input})


def _faults(seconds: float, **faults: Any) -> dict[str, Any]:
    return {"seconds": seconds, "faults": faults}


STORIES = (
    Story("all is well", evidence.plain, _faults(5.0)),
    Story("webhooks sent twice", evidence.duplicate, _faults(6.0, duplicate=True)),
    Story("webhooks out of order", evidence.reordered, _faults(7.0, reorder=True)),
    Story("webhooks lost", evidence.lost, _faults(8.0, drop=True)),
    Story("a forged webhook", evidence.forged, _faults(6.5, wrong_signature=1)),
    Story("webhook first", evidence.overtaking, _faults(4.5, webhook_before_response=1)),
    Story("rate limit", evidence.rate_limited, _faults(6.0, rate_limit=1)),
    Story("a passing failure", evidence.interrupted, _faults(4.0, fail=1)),
    # Replicate's list does not tell the webhook here, so that its coming is what solves it.
    Story(
        "unknown outcome",
        evidence.unknown,
        {**_faults(7.5, reset=1), "nulls": ["webhook"]},
    ),
    Story("unknown, webhooks lost", evidence.unknown, _faults(4.0, reset=1, drop=True)),
    Story(
        "canceled by us",
        evidence.canceled,
        {"seconds": 30.0},
        ends="canceled",
        cancel_after=4.0,
    ),
    Story(
        "refused content",
        evidence.rejected,
        {"seconds": 3.0, "outcome": "failed", "error": "NSFW content detected in the prompt"},
        ends="failed",
    ),
)
