"""The newcomer's first minute: a dozen predictions, each under a fault, watched to their ends.

The app and a simulated Replicate run in this process; everything goes over real HTTP on loopback,
with signed webhooks, and through the ordinary client. What is said to have been healed is read
from the histories, the inbox and the simulator's counters, and said only if it is there.
"""

from __future__ import annotations

from agentflow.demo.play import run

__all__ = ["run"]
