"""Services on loopback to declare: a shop that answers at once, speech whose webhook is thin and
proves itself by a header (as AssemblyAI's), a queue that signs by Ed25519 (as fal's).

async with QueueSimulator("a-key").serve() as sim:
    os.environ.update(env(sim))
"""

from __future__ import annotations

import json

from agentflow_http.simulator.declared import DeclaredSimulator
from agentflow_http.simulator.queue import QueueSimulator
from agentflow_http.simulator.shop import ShopSimulator
from agentflow_http.simulator.speech import SpeechSimulator

__all__ = ["QueueSimulator", "ShopSimulator", "SpeechSimulator", "env", "simulator"]


def simulator(key: str) -> QueueSimulator:
    """A queue that lets in who has `key`."""
    return QueueSimulator(key=key)


def env(*sims: DeclaredSimulator) -> dict[str, str]:
    """The plugin's settings that lead to simulators which are being served."""
    return {"AGENTFLOW_HTTP_SERVICES": json.dumps({sim.name: sim.service() for sim in sims})}
