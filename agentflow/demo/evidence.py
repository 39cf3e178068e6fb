"""What a job's records prove. Each of these gives a sentence, or None if it was not so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agentflow.client import Event, Job
from agentflow.testing.simulator import Stats


@dataclass(frozen=True, slots=True)
class Trail:
    """One job as the API shows it afterwards; `deliveries` are the webhooks that were for it."""

    job: Job
    history: Sequence[Event]
    deliveries: Sequence[Mapping[str, Any]]
    stats: Stats

    def first(self, **wanted: str) -> Event | None:
        """The first applied entry whose fields are as wanted."""
        return next(iter(self.all(disposition="applied", **wanted)), None)

    def all(self, **wanted: str) -> list[Event]:
        fits = wanted.items()
        return [e for e in self.history if all(getattr(e, k) == v for k, v in fits)]


def seconds(before: Event, after: Event) -> str:
    return f"{(after.at - before.at).total_seconds():.1f} s"


Check: TypeAlias = Callable[[Trail], str | None]


def plain(trail: Trail) -> str | None:
    if trail.first(event="succeeded", source="webhook"):
        return "nothing went wrong"
    return None


def duplicate(trail: Trail) -> str | None:
    twice = trail.stats.faults["duplicate"]
    ids = {d["delivery_id"] for d in trail.deliveries}
    if twice and len(trail.deliveries) == len(ids) == twice:
        return f"{twice} came twice, each was stored once"
    return None


def reordered(trail: Trail) -> str | None:
    end = trail.first(event="succeeded", source="webhook")
    late = trail.all(event="progressed", source="webhook", disposition="ignored")
    late = [e for e in late if end and e.seq > end.seq]
    if late:
        return f"{len(late)} came after the end, changed nothing"
    return None


def lost(trail: Trail) -> str | None:
    accepted = trail.first(event="accepted")
    end = trail.first(event="succeeded", source="poll")
    if accepted and end and not trail.deliveries:
        return f"none came; polling healed it in {seconds(accepted, end)}"
    return None


def forged(trail: Trail) -> str | None:
    refused = trail.stats.answers["401"]
    if refused and trail.first(event="succeeded", source="webhook"):
        return f"{refused} refused (401), the genuine ones taken"
    return None


def overtaking(trail: Trail) -> str | None:
    end = trail.first(event="succeeded", source="webhook")
    accepted = trail.all(event="accepted", source="worker")
    if end and all(e.seq > end.seq for e in accepted):
        return "result came before the call's answer"
    return None


def rate_limited(trail: Trail) -> str | None:
    again = trail.first(reason="retry:rate_limited")
    starts = trail.all(event="started", disposition="applied")
    if again and len(starts) == 2:
        return f"429; tried again {seconds(again, starts[1])} later"
    return None


def interrupted(trail: Trail) -> str | None:
    again = trail.first(reason="retry:provider_error")
    starts = trail.all(event="started", disposition="applied")
    if again and len(starts) == 2:
        return f"failed; tried again {seconds(again, starts[1])} later"
    return None


def unknown(trail: Trail) -> str | None:
    """The call's connection broke: was the prediction made or not?"""
    unsure = trail.first(reason="submit_unknown")
    found = trail.first(reason="found")
    once = trail.job.data["attempt"] == 1 and set(trail.stats.created.values()) == {1}
    if unsure and found and found.seq > unsure.seq and once:
        how = "its webhook" if found.source == "webhook" else "asking for it"
        return f"found again by {how}, paid once"
    return None


def canceled(trail: Trail) -> str | None:
    end = trail.first(event="canceled", status="canceled")
    if end and trail.stats.counts["cancels"]:
        return "Replicate was asked, and confirmed it"
    return None


def rejected(trail: Trail) -> str | None:
    error = trail.job.error
    if error and error.kind == "content_rejected" and trail.job.data["attempt"] == 1:
        return "failed at once: a retry cannot help"
    return None
