"""An application whose services are declared by settings alone, on real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agentflow_http.simulator import env

from agentflow import AgentFlow
from support.servers import free_port
from support.whole import Whole, whole

HASTY = {"backoff": 0.05, "unknown_checks": 1}


@asynccontextmanager
async def declared(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    *sims: Any,
    webhooks: bool = True,
    hasty: tuple[str, ...] = (),
    port: int | None = None,
    **policy: Any,
) -> AsyncIterator[Whole]:
    """`hasty` names the tasks whose policies are, and have these fields."""
    if sims:
        monkeypatch.setenv("AGENTFLOW_HTTP_SERVICES", env(*sims)["AGENTFLOW_HTTP_SERVICES"])
    app = AgentFlow(plugins=["http"], policies=dict.fromkeys(hasty, HASTY | policy))
    async with whole(app, data, port or free_port(), webhooks=webhooks) as here:
        yield here
