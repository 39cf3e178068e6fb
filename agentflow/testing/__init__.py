"""For the tests of applications, plugins, and of agentflow itself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["HERE", "Ends", "Order", "PluginConformance", "Simulator", "app"]

_PLACES = {
    "HERE": "agentflow.testing.conformance.order",
    "Ends": "agentflow.testing.conformance.order",
    "Order": "agentflow.testing.conformance.order",
    "PluginConformance": "agentflow.testing.conformance.suite",
    "Simulator": "agentflow.testing.simulator",
    "app": "agentflow.testing.application",
}

if TYPE_CHECKING:
    from agentflow.testing.application import app as app
    from agentflow.testing.conformance.order import HERE as HERE
    from agentflow.testing.conformance.order import Ends as Ends
    from agentflow.testing.conformance.order import Order as Order
    from agentflow.testing.conformance.suite import PluginConformance as PluginConformance
    from agentflow.testing.simulator import Simulator as Simulator


def __getattr__(name: str) -> Any:
    """Load on first use: a simulator does not need the application's side, and only the suite
    needs pytest."""
    if name not in _PLACES:
        raise AttributeError(f"module 'agentflow.testing' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
