"""A Replicate on loopback: `python -m agentflow_replicate.simulator`, or in a process of yours.

async with simulator(secret, token).serve() as sim:
    os.environ.update(env(sim))
"""

from __future__ import annotations

from agentflow_replicate.simulator.replicate import ReplicateSimulator
from agentflow_replicate.simulator.script import Script

__all__ = ["ReplicateSimulator", "Script", "env", "simulator"]


def simulator(secret: str | None = None, token: str = "r8_simulated") -> ReplicateSimulator:
    """A simulator that signs with `secret` (`whsec_…`, by default a new one) and lets in who has
    `token`."""
    return ReplicateSimulator(secret=secret, token=token)


def env(sim: ReplicateSimulator) -> dict[str, str]:
    """The plugin's settings that lead to a simulator which is being served."""
    return sim.env()
