"""Replicate for agentflow: the task `replicate.predict`.

Loading this costs nothing: the SDK is imported by the first call.
"""

from __future__ import annotations

from agentflow import Provider, hookimpl
from agentflow_replicate import secret  # noqa: F401 - it says how webhooks are set up
from agentflow_replicate.facts import fact
from agentflow_replicate.provider import Predict, provider
from agentflow_replicate.settings import ReplicateSettings

__all__ = ["Predict", "ReplicateSettings", "agentflow_providers", "fact", "provider"]


@hookimpl
def agentflow_providers() -> list[Provider]:
    return [provider]
