"""The plugin against the suite, which is all there is to say that it is done."""

from __future__ import annotations

from typing import Any, ClassVar

from agentflow_replicate import provider
from agentflow_replicate.simulator import ReplicateSimulator

from agentflow.testing import Ends, Order, PluginConformance


def run(**script: Any) -> dict[str, Any]:
    """A prediction that does what the script says."""
    return {"model": "acme/painter", "input": {"prompt": "a cat", "simulate": script}}


class TestReplicate(PluginConformance):
    provider = provider
    simulator = staticmethod(lambda: ReplicateSimulator(token="r8_of_the_conformance_suite"))
    webhook_setting = "REPLICATE_WEBHOOK_SECRET"
    errors = ("replicate.exceptions", "httpx")
    error_kinds: ClassVar[dict[str, str]] = {
        "replicate.ModelError": "provider_error",
        "replicate.ReplicateError": "outcome_unknown",  # it is made with an answer 500
        "replicate.ReplicateException": "unavailable",
    }
    orders = (
        Order(
            "predict",
            run(seconds=0.2, images=2),
            later=True,
            result={
                "output": [str, str],
                "artifacts": [
                    {"name": "out-0.png", "media_type": "image/png"},
                    {"name": "out-1.png", "media_type": "image/png"},
                ],
                "usage": {"predict_seconds": float, "total_seconds": float},
            },
            slow=run(seconds=20),
            ends=(
                Ends(
                    run(seconds=0.2, output=["a ", "cat"]),
                    "succeeded",
                    result={"text": "a cat", "output": ["a ", "cat"], "artifacts": []},
                ),
                Ends(
                    run(seconds=0.2, outcome="failed", error="bad weights"), error="provider_error"
                ),
                Ends(
                    run(seconds=0.2, outcome="failed", error="NSFW content detected"),
                    error="content_rejected",
                ),
                Ends(run(seconds=0.2, outcome="canceled"), "canceled"),
            ),
            refused=(
                {"input": {}},
                {"model": "no slash", "input": {}},
                {"model": "a/b", "version": "0" * 64, "input": {}},
                {"model": "a/b"},
            ),
        ),
        Order(
            "predict",
            {"version": "0" * 64, "input": {"simulate": {"instant": True}}},
            result={"artifacts": [{"name": "out-0.png", "status": "stored"}]},
        ),
        Order(
            "predict",
            {
                "deployment": "acme/prod",
                "input": {"image": b"\x89PNG\r\n\x1a\n", "simulate": {"instant": True}},
            },
            result={"artifacts": [{"name": "out-0.png"}]},
        ),
    )
