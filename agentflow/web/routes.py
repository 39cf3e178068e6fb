"""Routes that describe themselves: one declaration serves Starlette and the OpenAPI page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path. `answers` maps a status to its model; None means a problem from 400
    on, and below no JSON. `also` is another media type of the same answers, without a schema."""

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
    also: str | None = None


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
        also: str | None = None,
    ) -> Callable[[Endpoint], Endpoint]:
        """Declare `endpoint`; the first line of its docstring is the summary."""

        def declare(endpoint: Endpoint) -> Endpoint:
            summary, _, rest = (endpoint.__doc__ or "").strip().partition("\n")
            said = " ".join(rest.split())
            operation = Operation(method, path, endpoint, summary, said, self.tag, answers)
            self.operations.append(
                replace(operation, body=body, query=query, headers=headers or {}, also=also)
            )
            return endpoint

        return declare
