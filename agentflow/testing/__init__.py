"""For the tests of applications, plugins, and of agentflow itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["app"]

if TYPE_CHECKING:
    from agentflow.testing.application import app as app


def __getattr__(name: str) -> Any:
    """Load on first use: a simulator does not need the application's side."""
    if name != "app":
        raise AttributeError(f"module 'agentflow.testing' has no attribute {name!r}")
    from agentflow.testing.application import app

    return app
