"""Says when the plugin is done: `agentflow plugins test .`"""

from agentflow.testing import Ends, Order, PluginConformance

from agentflow_fal import provider
from agentflow_fal.simulator import FalSimulator

MODEL = "fal-ai/flux/dev"


def asked(prompt: str) -> dict[str, object]:
    return {"model": MODEL, "input": {"prompt": prompt}}


IMAGE = {
    "output": {"seed": 7},
    "artifacts": [{"media_type": "image/gif", "name": "pixel.gif"}],
}


class TestFal(PluginConformance):
    provider = provider
    simulator = FalSimulator
    webhook_setting = None  # fal's public keys are fetched
    orders = (
        Order(
            "run",
            asked("a cat"),
            later=True,
            result=IMAGE,
            slow=asked("slow"),
            ends=(
                Ends(asked("reject"), error="content_rejected"),
                Ends(asked("empty"), error="invalid_input"),
                Ends(asked("odd"), error="provider_error"),
                Ends(asked("large"), status="succeeded", result=IMAGE),
            ),
            refused=({}, {"model": "flux"}, {"model": "../x/y"}, {"model": MODEL, "inputs": {}}),
        ),
    )
