"""The hooks. They are few, synchronous, run once at start, and return descriptions."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from agentflow.core.providers import Provider

PROJECT = "agentflow"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def agentflow_providers() -> Sequence[Provider]:  # type: ignore[empty-body]  # a spec has no body
    """The providers this plugin contributes."""
