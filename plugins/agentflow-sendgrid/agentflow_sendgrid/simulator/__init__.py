"""A SendGrid on loopback: takes mails, and tells by signed batches of events what became of them.

async with simulator("SG.key").serve() as sim:
    os.environ.update(env(sim))
"""

from __future__ import annotations

from agentflow_sendgrid.simulator.sendgrid import SendGridSimulator

__all__ = ["SendGridSimulator", "env", "simulator"]


def simulator(key: str = "SG.simulated") -> SendGridSimulator:
    """A simulator that lets in who has `key`; it signs with a key pair of its own."""
    return SendGridSimulator(key=key)


def env(sim: SendGridSimulator) -> dict[str, str]:
    """The plugin's settings that lead to a simulator which is being served."""
    return sim.env()
