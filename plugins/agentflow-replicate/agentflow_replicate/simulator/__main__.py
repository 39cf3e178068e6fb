"""`python -m agentflow_replicate.simulator --port 8090 --secret whsec_…`"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from contextlib import suppress

from agentflow_replicate.simulator import ReplicateSimulator


def main() -> None:
    """Print the address on one line and serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m agentflow_replicate.simulator")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--secret", help="signs the webhooks (whsec_…); a new one if left out")
    parser.add_argument("--token", default="r8_simulated", help="the API token that is let in")
    parser.add_argument("--retention", type=float, default=3600.0, help="seconds outputs are kept")
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON: '{\"drop\": 0.05}'")
    parser.add_argument("--seed", type=int, default=0, help="makes the faults repeatable")
    options = parser.parse_args()
    sim = ReplicateSimulator(
        token=options.token,
        secret=options.secret,
        retention=options.retention,
        seed=options.seed,
    )
    sim.faults.update(options.faults)
    asyncio.run(_serve(sim, options.port))


async def _serve(sim: ReplicateSimulator, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows raises KeyboardInterrupt instead
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with sim.serve(port):
        sys.stdout.write(f"{sim.url}\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    main()
