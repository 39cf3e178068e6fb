"""OpenAI for agentflow: `openai.respond`, `openai.chat`, `openai.embed` and more.

Loading this costs nothing: the SDK is imported by the first call.
"""

from __future__ import annotations

from agentflow import Provider, hookimpl
from agentflow_openai import audio, batches, endpoints, images, models  # noqa: F401 - they add
from agentflow_openai.provider import provider
from agentflow_openai.settings import OpenAISettings

__all__ = ["OpenAISettings", "agentflow_providers", "provider"]


@hookimpl
def agentflow_providers() -> list[Provider]:
    return [provider]
