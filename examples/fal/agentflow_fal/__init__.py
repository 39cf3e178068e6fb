"""fal for agentflow: the task `fal.run` runs any model of fal's queue."""

from agentflow import Provider, hookimpl

from agentflow_fal.provider import provider

__all__ = ["agentflow_providers", "provider"]


@hookimpl
def agentflow_providers() -> list[Provider]:
    return [provider]
