"""Routes that describe themselves: one declaration serves Starlette and the OpenAPI page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path. `answers` maps a status to its model (None: no JSON body)."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    description: str
    tag: str
    answers: dict[int, Any]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    media: str = "application/json"


class Routes:
    """Operations in order of declaration."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.operations: list[Operation] = []

    def add(
        self,
        method: str,
        path: str,
        *,
        answers: dict[int, Any],
        body: type[BaseModel] | None = None,
        query: type[BaseModel] | None = None,
        headers: dict[str, str] | None = None,
        media: str = "application/json",
    ) -> Callable[[Endpoint], Endpoint]:
        """Declare `endpoint`; the first line of its docstring is the summary."""

        def declare(endpoint: Endpoint) -> Endpoint:
            summary, _, rest = (endpoint.__doc__ or "").strip().partition("\n")
            said = " ".join(rest.split())
            operation = Operation(method, path, endpoint, summary, said, self.tag, answers)
            self.operations.append(
                replace(operation, body=body, query=query, headers=headers or {}, media=media)
            )
            return endpoint

        return declare

    def routes(self) -> list[Route]:
        return [Route(o.path, o.endpoint, methods=[o.method]) for o in self.operations]
