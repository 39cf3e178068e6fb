"""Every provider but Replicate, on loopback, with the faults a provider can have."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import agentflow_http.simulator
import agentflow_openai.simulator
import agentflow_sendgrid.simulator
from agentflow_http.simulator import QueueSimulator, ShopSimulator

from agentflow.testing.simulator import Simulator
from agentflow.webhooks.signatures import new_secret
from mixed.receiver import Receiver

FAULTS = {
    "duplicate": 0.1, "drop": 0.1, "delay": 0.05, "wrong_signature": 0.02, "reset": 0.03,
    "error_before": 0.02, "error_after": 0.03, "rate_limit": 0.03, "rate_limit_seconds": 1,
    "webhook_before_response": 0.05, "slow_body": 0.01, "fail": 0.02,
}  # fmt: skip


@dataclass
class Providers:
    """`receiver` is whom callbacks are for; `env` the settings that lead to all of them."""

    sims: dict[str, Simulator]
    receiver: Receiver
    env: dict[str, str] = field(default_factory=dict)

    def hear(self, url: str) -> None:
        """Send the webhooks of whole accounts to this server."""
        for name in ("openai", "sendgrid"):
            self.sims[name].webhook_url = f"{url}/webhooks/{name}"  # type: ignore[attr-defined]

    @property
    def shop(self) -> str:
        """Where `http.get` and `http.request` go."""
        return self.sims["shop"].url

    def created(self) -> Iterator[tuple[str, Counter[str]]]:
        """By the token of the attempt; at the shop, by the entity of the job."""
        for name, sim in self.sims.items():
            yield name, sim.stats.created


@asynccontextmanager
async def providers(seed: int) -> AsyncIterator[Providers]:
    async with AsyncExitStack() as stack:
        openai = agentflow_openai.simulator.simulator(new_secret(), "sk-mixed")
        sendgrid = agentflow_sendgrid.simulator.simulator("SG.mixed")
        shop, queue = ShopSimulator(key="shop-key-mixed"), QueueSimulator(key="queue-key-mixed")
        sims: Mapping[str, Simulator] = {
            "openai": openai, "sendgrid": sendgrid, "shop": shop, "queue": queue,
        }  # fmt: skip
        for sim in sims.values():
            await stack.enter_async_context(sim.serve())
            sim.faults.update({"seed": seed, **FAULTS})
        receiver = await stack.enter_async_context(Receiver(new_secret(), seed).serve())
        env = {
            **agentflow_openai.simulator.env(openai),
            **agentflow_sendgrid.simulator.env(sendgrid),
            **agentflow_http.simulator.env(shop, queue),
            **receiver.env(),
        }
        yield Providers(dict(sims), receiver, env)
