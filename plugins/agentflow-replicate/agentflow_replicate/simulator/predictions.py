"""The lives of predictions, each a sleeping coroutine."""

from __future__ import annotations

import asyncio
import uuid
from itertools import islice
from random import Random
from typing import Any

import orjson

from agentflow.testing.simulator import Hit, Simulator
from agentflow_replicate.simulator.order import Order
from agentflow_replicate.simulator.prediction import Prediction

STEPS = 20
"""The most progress bars a prediction logs."""
THROTTLE = 0.5
"""Seconds between two webhooks about logs, unless the prediction is shorter."""


class Predictions:
    """All predictions in the order of their creation; the oldest that ended are forgotten."""

    def __init__(self, host: Simulator, *, retention: float, most: int, seed: int) -> None:
        self._host, self.retention, self._most = host, retention, most
        self._random = Random(seed)
        self._all: dict[str, Prediction] = {}
        self.made = 0

    def get(self, id: str) -> Prediction | None:
        return self._all.get(id)

    def view(self, prediction: Prediction) -> dict[str, Any]:
        return prediction.view(self._host.url, self.retention)

    def newest(self, before: int, most: int) -> list[Prediction]:
        """At most so many with numbers below `before`, newest first."""
        older = (each for each in reversed(self._all.values()) if each.number < before)
        return list(islice(older, most))

    def make(self, order: Order, hit: Hit) -> Prediction:
        """Create a prediction and let it run."""
        self.made += 1
        seconds, webhook = order.script.seconds, order.webhook
        prediction = Prediction(
            id=uuid.uuid4().hex[:26],
            number=self.made,
            order=order,
            hit=hit,
            seconds=self._random.uniform(1, 2) if seconds is None else seconds,
            outbox=self._host.outbox(webhook, hit) if webhook else None,
        )
        self._keep(prediction)
        if order.script.instant:
            prediction.start()
            self.end(prediction)
        else:
            self._host.spawn(self._live(prediction))
        return prediction

    def end(self, prediction: Prediction, status: str | None = None) -> None:
        """End as told, or else as the script says; what has ended stays as it is."""
        if prediction.ended.is_set():
            return
        if status is None:
            status = "failed" if prediction.hit("fail") else prediction.order.script.outcome
        prediction.end(status, self._output(prediction))
        self._tell(prediction, "completed")

    def _keep(self, prediction: Prediction) -> None:
        self._all[prediction.id] = prediction
        oldest = next(iter(self._all.values()))
        if len(self._all) > self._most and oldest.ended.is_set():
            del self._all[oldest.id]

    async def _live(self, prediction: Prediction) -> None:
        script, seconds = prediction.order.script, prediction.seconds
        await asyncio.sleep(script.starting)
        if prediction.hit("abort") or script.outcome == "aborted":
            self.end(prediction, "aborted")
        if prediction.ended.is_set():
            return
        prediction.start()
        self._tell(prediction, "start")
        steps = max(2, min(STEPS, int(seconds / THROTTLE) + 1))
        for step in range(1, steps):
            await asyncio.sleep(seconds / steps)
            if prediction.ended.is_set():
                break
            prediction.progress(step, steps)
            self._tell(prediction, "logs")
        await asyncio.sleep(seconds / steps)
        if script.outcome != "never":
            self.end(prediction)

    def _output(self, prediction: Prediction) -> Any:
        script = prediction.order.script
        if script.output is not None:
            return script.output
        place = f"{self._host.url}/outputs/{prediction.id}"
        return [f"{place}/out-{number}.png" for number in range(script.images)]

    def _tell(self, prediction: Prediction, event: str) -> None:
        if prediction.outbox is not None and event in prediction.order.events:
            body = orjson.dumps(self.view(prediction))
            prediction.outbox.post(body, last=event == "completed")
