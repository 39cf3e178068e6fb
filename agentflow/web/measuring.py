"""Around every route: how many requests came, how long they took, and a span for those that may
make a job."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentflow.telemetry import traces
from agentflow.telemetry.metrics import OTHER, Metrics
from agentflow.web.metrics import gauges

_UNCOUNTED = Metrics()


def metrics_of(request: Request) -> Metrics:
    """Those of the running process; before the start, some that nobody reads."""
    found = gauges(request)
    return _UNCOUNTED if found is None else found.metrics


class Measured:
    """ASGI middleware. A request is counted when its answer begins: a wait for a job's end or a
    live stream takes as long as its client likes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._paths: set[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        metrics, began = metrics_of(Request(scope)), time.perf_counter()
        answered = False

        def count(status: int) -> None:
            nonlocal answered
            answered = True
            route, method = self._route(scope), metrics.method(scope["method"])
            metrics.requests[route, method, str(status)].inc()
            metrics.request_seconds[route, method].observe(time.perf_counter() - began)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            with _span(scope) as span:
                await self.app(scope, receive, counted)
                if span is not None:
                    span.update_name(f"POST {self._route(scope)}")
        except Exception:
            if not answered:
                count(500)
            raise

    def _route(self, scope: Scope) -> str:
        """The template of the route that was found. A host application's own is none of ours."""
        if self._paths is None:
            self._paths = {route.path for route in scope["app"].routes}
        path = getattr(scope.get("route"), "path", None)
        return path if path in self._paths else OTHER


def _span(scope: Scope) -> AbstractContextManager[Any]:
    """What submits is the root of a job's trace, or goes on with that of the client."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if scope["method"] != "POST" or not path.startswith("/v1/jobs"):
        return nullcontext()
    parent = traces.received(Headers(scope=scope))
    return traces.span("POST /v1/jobs", parent, kind=traces.SpanKind.SERVER)
