"""An OpenAI on loopback, for tests and for trying things without a key.

async with simulator(secret, key).serve() as sim:
    os.environ.update(env(sim))
"""

from __future__ import annotations

from agentflow_openai.simulator.openai import OpenAISimulator

__all__ = ["OpenAISimulator", "env", "simulator"]


def simulator(secret: str | None = None, key: str = "sk-simulated") -> OpenAISimulator:
    """A simulator that signs with `secret` (`whsec_…`, by default a new one) and lets in who has
    `key`."""
    return OpenAISimulator(secret=secret, key=key)


def env(sim: OpenAISimulator) -> dict[str, str]:
    """The plugin's settings that lead to a simulator which is being served."""
    return sim.env()
