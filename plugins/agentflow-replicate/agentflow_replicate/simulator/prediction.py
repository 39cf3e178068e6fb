"""A simulated prediction, and the JSON of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agentflow.testing.simulator import Hit, Outbox
from agentflow_replicate.simulator.order import Order


@dataclass(slots=True, kw_only=True)
class Prediction:
    """The state behind the JSON; `number` counts up from 1 in the order of creation."""

    id: str
    number: int
    order: Order
    hit: Hit
    seconds: float
    outbox: Outbox | None = None
    created_at: datetime = field(default_factory=lambda: now())
    status: str = "starting"
    started_at: datetime | None = None
    completed_at: datetime | None = None
    logs: str = ""
    output: Any = None
    error: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        self.status, self.started_at = "processing", now()
        self.logs = f"Using seed: {self.number}\n"

    def progress(self, step: int, steps: int) -> None:
        done = round(10 * step / steps)
        bar = "█" * done + " " * (10 - done)
        self.logs += f"{100 * step // steps:3d}%|{bar}| {step}/{steps} [00:00<00:00, 9.99it/s]\n"

    def end(self, status: str, output: Any) -> None:
        """Reach a final status; to be called once."""
        self.status, self.completed_at = status, now()
        if status == "failed":
            self.error = self.order.script.error
        if status == "succeeded":
            self.output = output
        self.ended.set()

    def older_than(self, seconds: float) -> bool:
        """Whether it ended longer ago."""
        return self.completed_at is not None and since(self.completed_at) > seconds

    def view(self, base: str, retention: float) -> dict[str, Any]:
        """The prediction object; a young one has no `started_at`, `completed_at`, `metrics`.

        Input, output and logs are gone `retention` seconds after the end.
        """
        removed, target = self.older_than(retention), self.order.target
        shown: dict[str, Any] = {
            "id": self.id,
            "model": target.get("model", "simulated/model"),
            "version": target.get("version", "hidden"),
            "input": {} if removed else self.order.input,
            "logs": "" if removed else self.logs,
            "output": None if removed else self.output,
            "data_removed": removed,
            "error": self.error,
            "source": "api",
            "status": self.status,
            "created_at": stamp(self.created_at),
            "urls": {
                "get": f"{base}/v1/predictions/{self.id}",
                "cancel": f"{base}/v1/predictions/{self.id}/cancel",
            },
        }
        if "deployment" in target:
            shown["deployment"] = target["deployment"]
        if self.order.webhook is not None:
            shown["webhook"] = self.order.webhook
            shown["webhook_events_filter"] = list(self.order.events)
        if self.started_at is not None:
            shown["started_at"] = stamp(self.started_at)
        if self.completed_at is not None:
            shown["completed_at"] = stamp(self.completed_at)
            shown["metrics"] = self._metrics(self.completed_at)
        return shown | dict.fromkeys(self.order.script.nulls)

    def _metrics(self, end: datetime) -> dict[str, float]:
        metrics = {"total_time": (end - self.created_at).total_seconds()}
        if self.started_at is not None:
            metrics["predict_time"] = (end - self.started_at).total_seconds()
        return metrics


def now() -> datetime:
    return datetime.now(UTC)


def since(then: datetime) -> float:
    return (now() - then).total_seconds()


def stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
