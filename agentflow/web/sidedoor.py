"""Metrics and health on a port of their own, for roles that serve nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from starlette.applications import Starlette
from starlette.routing import Route

from agentflow.errors import SettingsError
from agentflow.web import rest
from agentflow.web.context import Context
from agentflow.web.listening import Listening, bind
from agentflow.web.metrics import Gauges, metrics
from agentflow.web.problems import HANDLERS

log = structlog.get_logger(__name__)


@asynccontextmanager
async def side_door(ctx: Context, gauges: Gauges, host: str, port: int) -> AsyncIterator[int]:
    """Serves `/metrics`, `/healthz` and `/readyz` around the block, which gets the port. Raises
    `SettingsError` if it cannot be listened on."""
    routes = [
        Route("/metrics", metrics),
        Route("/healthz", rest.healthz),
        Route("/readyz", rest.readyz),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.state.agentflow, app.state.gauges = ctx, gauges
    try:
        listener = bind(host, port)
    except SettingsError:
        raise SettingsError(
            f"AGENTFLOW_METRICS_PORT={port}: {host} cannot listen on it. Another process may; on"
            " one machine each has a port of its own, and 0 takes a free one."
        ) from None
    server = Listening(app)
    with listener:
        async with server.serving(listener):
            open_port: int = listener.getsockname()[1]
            log.info("Metrics are served", host=host, port=open_port)
            try:
                yield open_port
            finally:
                server.stop()
