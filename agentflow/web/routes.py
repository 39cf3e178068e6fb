"""Routes that describe themselves: one declaration serves Starlette and the OpenAPI page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]

Needs: TypeAlias = Literal["open", "read", "write", "admin"]
"""The scope of the key a route asks for; `open` ones ask for none, `admin` is for operators."""

_OPEN = ("/healthz", "/readyz", "/webhooks/")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path. `answers` maps a status to its model; None means a problem from 400
    on, and below no JSON. `also` is another media type of the same answers, without a schema;
    `events` are the shapes of its server-sent events by name, `*` standing for all others.
    `submits`: it makes jobs, for which there must be room."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    description: str
    tag: str
    answers: dict[int, Any]
    scope: Needs
    submits: bool
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    also: str | None = None
    events: dict[str, type[BaseModel]] = field(default_factory=dict)


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
        events: dict[str, type[BaseModel]] | None = None,
        scope: Needs | None = None,
        submits: bool | None = None,
    ) -> Callable[[Endpoint], Endpoint]:
        """Declare `endpoint`; the first line of its docstring is the summary.

        `scope` is by default `read` for GET and `write` for the rest, and `submits` true for what
        answers with 201.
        """
        needed = scope or _usual(method, path)
        makes = 201 in answers if submits is None else submits

        def declare(endpoint: Endpoint) -> Endpoint:
            summary, _, rest = (endpoint.__doc__ or "").strip().partition("\n")
            said = " ".join(rest.split())
            operation = Operation(
                method, path, endpoint, summary, said, self.tag, answers, needed, makes
            )
            more: dict[str, Any] = {"body": body, "query": query, "also": also}
            self.operations.append(
                replace(operation, **more, headers=headers or {}, events=events or {})
            )
            return endpoint

        return declare


def _usual(method: str, path: str) -> Needs:
    if path.startswith(_OPEN):
        return "open"
    return "read" if method == "GET" else "write"
