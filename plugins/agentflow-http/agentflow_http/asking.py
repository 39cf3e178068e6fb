"""What a job may ask: the inputs of the tasks, and the request they come to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    create_model,
    model_validator,
)

from agentflow_http.auth import HeaderName
from agentflow_http.pointer import Pointer
from agentflow_http.service import Expect, Method, Operation, Service, filled, places

_SECRET = re.compile(r"auth|cookie|secret|token|api-?key|passw|signature|credential", re.I)
_OURS = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
_VALUE = re.compile(r"[\x20-\x7e\t]{0,4000}")

Scalar = str | int | float | bool


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if _SECRET.search(name):
            raise ValueError(
                f"{name}: inputs are kept and shown, so that nothing secret belongs there; declare"
                " a service with auth"
            )
        if name.lower() in _OURS:
            raise ValueError(f"{name} is not for callers to say")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"{name}: visible ASCII, to 4000")
    return headers


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have credentials: inputs are kept and shown")
    if parts.fragment:
        raise ValueError("must not have a fragment")
    _ = parts.port  # raises ValueError where it is none
    return url


Url = Annotated[
    str, Field(max_length=8000, pattern=r"^[\x21-\x7e]+$"), AfterValidator(_checked_url)
]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, without what makes us known."""

    method: str
    url: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    type: str | None = None
    expect: Expect = "auto"
    output: str | None = None
    timeout: float | None = None


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Asking(_Shape):
    """What every request may say."""

    query: dict[str, Scalar | list[Scalar] | None] = Field(default_factory=dict)
    headers: Annotated[dict[HeaderName, str], AfterValidator(_checked_headers)] = Field(
        default_factory=dict
    )
    expect: Expect = "auto"
    """What the answer is: by its content type, or `json`, `text`, `file`."""
    output: Pointer | None = None
    """Where in a JSON answer the output is; unset, all of it."""
    timeout: float | None = Field(None, gt=0, le=3600)
    """Seconds for the whole request, within those of the task."""


class _Body(Asking):
    method: Method = "POST"
    content: JsonValue = Field(None, alias="json")
    """The body, as JSON."""
    form: dict[str, Scalar | list[Scalar]] | None = None
    """The body, as a form."""
    text: str | None = None
    """The body, as it is."""

    @model_validator(mode="after")
    def _one_body(self) -> _Body:
        given = [self.content is not None, self.form is not None, self.text is not None]
        if sum(given) > 1:
            raise ValueError("give one of json, form and text")
        if any(given) and self.method in ("GET", "HEAD"):
            raise ValueError(f"{self.method} has no body")
        return self

    def encoded(self) -> tuple[bytes | None, str | None]:
        """The body, and its type."""
        if self.content is not None:
            return _json(self.content)
        if self.form is not None:
            return form(self.form)
        if self.text is not None:
            return self.text.encode(errors="replace"), "text/plain; charset=utf-8"
        return None, None


class _Anywhere(_Shape):
    url: Url
    auth: str | None = Field(None, max_length=40)
    """A declared service: its credentials go along, and its rules hold. The URL must be its."""


class HttpGet(Asking, _Anywhere):
    """`http.get`."""

    method: Literal["GET", "HEAD"] = "GET"


class HttpRequest(_Body, _Anywhere):
    """`http.request`."""


class _OfService(_Shape):
    path: str = Field(max_length=8000)
    """Below the service's `base_url`, percent-encoded, without a query."""


class ServiceGet(Asking, _OfService):
    """`NAME.get`."""

    method: Literal["GET", "HEAD"] = "GET"


class ServiceRequest(_Body, _OfService):
    """`NAME.request`."""


class OperationInput(RootModel[dict[str, JsonValue]]):
    """What a declared task sends."""


def bound(name: str, service: Service, base: type[ServiceGet] | type[ServiceRequest]) -> Any:
    """The input of a service's task, which refuses what the service does not admit."""

    def admitted(self: ServiceGet | ServiceRequest) -> ServiceGet | ServiceRequest:
        service.admit(self.method, self.path)
        return self

    validators: dict[str, Any] = {"admitted": model_validator(mode="after")(admitted)}
    return create_model(f"{name}_{base.__name__}", __base__=base, __validators__=validators)


def bound_operation(name: str, operation: Operation) -> Any:
    """The input of a declared task, which asks for what the path takes out of it."""

    def complete(self: OperationInput) -> OperationInput:
        _taken(operation, self.root)
        return self

    class Described(OperationInput):
        model_config = ConfigDict(json_schema_extra=_described(operation))

    validators: dict[str, Any] = {"complete": model_validator(mode="after")(complete)}
    return create_model(f"{name}_Input", __base__=Described, __validators__=validators)


def _described(operation: Operation) -> dict[str, Any]:
    """What the declaration says of the members: the service may admit more."""
    named = {name: {"type": ["string", "integer"]} for name in places(operation.path)}
    given = {n: {**named.get(n, {}), "default": v} for n, v in operation.defaults.items()}
    needed = [name for name in named if name not in operation.defaults]
    properties = {"properties": {**named, **given}} if named or given else {}
    return {**properties, **({"required": needed} if needed else {})}


def _taken(operation: Operation, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The path, and what remains of the input. Raises `ValueError`."""
    rest = {**operation.defaults, **given}
    values = {}
    for name in places(operation.path):
        value = rest.pop(name, None)
        if isinstance(value, bool) or not isinstance(value, str | int) or value in ("", ".", ".."):
            raise ValueError(f"{name}: it is a part of the path, so a text or a number")
        values[name] = quote(str(value), safe="")
    return filled(operation.path, values), rest


def of_url(input: HttpGet | HttpRequest) -> Ask:
    return _ask(input, input.url)


def of_service(input: ServiceGet | ServiceRequest, service: Service) -> Ask:
    return _ask(input, service.base_url + input.path)


def _ask(input: Any, url: str) -> Ask:
    body, type = input.encoded() if isinstance(input, _Body) else (None, None)
    return Ask(
        input.method, url, input.query, input.headers, body, type, input.expect, input.output,
        input.timeout,
    )  # fmt: skip


def of_operation(
    input: OperationInput,
    service: Service,
    operation: Operation,
    add: Mapping[str, Mapping[str, str]],
    put: Any,
) -> Ask:
    """`add` holds what the webhook needs, by `query`, `headers` and `body`; `put` sets a member."""
    path, rest = _taken(operation, input.root)
    for place, value in add.get("body", {}).items():
        put(rest, place, value)
    query, body, type = dict(add.get("query", {})), None, None
    if operation.method in ("GET", "HEAD", "DELETE"):
        query = {**{n: _scalar(v) for n, v in rest.items()}, **query}
    elif operation.send_as == "form":
        body, type = form({n: _scalar(v) for n, v in rest.items()})
    else:
        body, type = _json(rest)
    return Ask(
        operation.method, service.base_url + path, query, dict(add.get("headers", {})), body, type,
        operation.expect, operation.output,
    )  # fmt: skip


def _scalar(value: Any) -> Any:
    """Objects go into forms and queries as JSON."""
    return json.dumps(value) if isinstance(value, dict) else value


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace"), "application/json"


def form(value: Mapping[str, Any]) -> tuple[bytes, str]:
    return urlencode(pairs(value)).encode(), "application/x-www-form-urlencoded"


def pairs(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as forms and queries have them: null is left out, a list repeats."""
    return [
        (name, word(one))
        for name, each in value.items()
        for one in (each if isinstance(each, list) else [each])
        if one is not None
    ]


def word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
