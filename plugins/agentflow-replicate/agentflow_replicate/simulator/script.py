"""What one prediction shall do: `input.simulate`, so that a demo can script each job."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from agentflow.testing.simulator import FAULTS, Fault, Hit, Simulator

INTERRUPTED = "Prediction interrupted; please retry (code: PA)"
"""What Replicate says when its own machine failed; the plugin calls it worth a retry."""


class Script(BaseModel):
    """The vocabulary of `input.simulate`. All is optional; durations are in seconds."""

    model_config = ConfigDict(extra="forbid")

    seconds: float | None = Field(None, ge=0)
    """From `processing` to the end; 1 to 2 if left out."""
    starting: float = Field(0.05, ge=0)
    """Before `processing`."""
    outcome: Literal["succeeded", "failed", "canceled", "aborted", "never"] = "succeeded"
    error: str = INTERRUPTED
    """What a failed prediction says."""
    output: Any = None
    """Given instead of pictures."""
    images: int = Field(1, ge=1, le=16)
    instant: bool = False
    """The create's own answer is final already."""
    nulls: list[str] = []
    """Keys of the prediction that are null in every answer, `version` for instance."""
    faults: dict[str, Any] = {}
    """By name, as `POST /_faults` takes them: 1 is the first only, 0.5 every other, true all.
    What is not named here follows the settings for everybody."""
    key: str | None = None
    """`faults` are counted over all predictions of one key; by default, of one input. So a retry
    of the job, which is another prediction, does not meet the first one's fault again."""

    @field_validator("faults")
    @classmethod
    def _known(cls, faults: dict[str, Any]) -> dict[str, Any]:
        if unknown := faults.keys() - set(FAULTS):
            raise ValueError(f"no fault is called {', '.join(sorted(unknown))}")
        for value in faults.values():
            Fault.of(value)
        return faults


class Scripts:
    """The scripts in play, of which the `most` last keys are remembered."""

    def __init__(self, host: Simulator, most: int) -> None:
        self._host, self._most = host, most
        self._faults: dict[str, dict[str, Fault]] = {}

    def hit(self, script: Script, input: Any) -> Hit:
        """How the prediction of this script and input asks whether a fault happens."""
        host, scripted = self._host, self._of(script, input)

        def hit(name: str) -> bool:
            if name in scripted:
                return host.played(name, scripted[name].hit(host.faults.random))
            return host.hit(name)

        return hit

    def _of(self, script: Script, input: Any) -> dict[str, Fault]:
        if not script.faults:
            return {}
        key = script.key or _digest(input)
        if key not in self._faults:
            if len(self._faults) >= self._most:
                del self._faults[next(iter(self._faults))]
            self._faults[key] = {name: Fault.of(value) for name, value in script.faults.items()}
        return self._faults[key]


def _digest(input: Any) -> str:
    return blake2b(orjson.dumps(input, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()
