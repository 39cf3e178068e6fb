"""The OpenAPI 3.1 document, made from the routes' own declarations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agentflow.types import VERSION
from agentflow.web import schemas
from agentflow.web.routes import Operation

_REF = "#/components/schemas/{model}"
_SAID = {
    200: "OK",
    201: "Created",
    202: "Stored",
    204: "Nothing more will come",
    206: "The asked bytes",
    304: "Not modified",
    400: "The body is no JSON",
    401: "No API key, or one that is not valid",
    403: "The key's scope is too small; or from another site's page, and not as JSON",
    404: "There is no such thing",
    409: "It does not fit the present state",
    413: "Too large",
    416: "No such bytes",
    422: "The request does not fit; `errors` lists each fault",
    429: "Too many requests",
    503: "Not now",
}


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `af_…`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def document(operations: Sequence[Operation], *, keys: bool = False) -> dict[str, Any]:
    """The whole page; `keys`: the server lets nobody in without."""
    models: list[type[BaseModel]] = [schemas.Problem]
    for o in operations:
        models += [m for m in (o.body, *o.answers.values(), *o.events.values()) if m is not None]
    unique = list(dict.fromkeys(models))
    refs, definitions = models_json_schema(
        [(m, _mode(m, operations)) for m in unique], ref_template=_REF
    )
    paths: dict[str, Any] = {}
    for o in operations:
        paths.setdefault(o.path, {})[o.method.lower()] = {
            **_operation(o, refs),
            "security": _security(o, keys),
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentflow",
            "version": VERSION,
            "description": "Runs slow, paid, unreliable provider calls and never loses one.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": _SCHEMES,
        },
    }


def _security(o: Operation, keys: bool) -> list[dict[str, list[str]]]:
    """Any of these; the scope is named as OpenAPI 3.1 names roles."""
    if o.scope == "open":
        return []
    asked: list[dict[str, list[str]]] = [{name: [o.scope]} for name in _SCHEMES]
    return asked if keys else [*asked, {}]


def _mode(model: type[BaseModel], operations: Sequence[Operation]) -> Any:
    return "validation" if any(o.body is model for o in operations) else "serialization"


def _operation(o: Operation, refs: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "operationId": o.endpoint.__name__,
        "summary": o.summary,
        "tags": [o.tag],
        "parameters": _parameters(o),
        "responses": {
            str(status): _answer(o, status, model, refs) for status, model in _answers(o).items()
        },
    }
    if o.description:
        said["description"] = o.description
    if o.body is not None:
        schema = refs[o.body, "validation"]
        said["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    elif o.tag == "webhooks":
        said["requestBody"] = {"required": True, "content": {"*/*": {}}}
    return said


def _answers(o: Operation) -> dict[int, Any]:
    """The declared answers and those that follow from the rest of the declaration."""
    implied: set[int] = {503} if o.tag != "health" else set()
    if "{" in o.path:
        implied.add(404)
    if o.scope != "open":
        implied |= {401, 403, 429}
    if o.query is not None or o.body is not None:
        implied.add(422)
    if o.body is not None:
        implied |= {400, 413}
    return dict(sorted({**dict.fromkeys(implied), **o.answers}.items()))


def _answer(o: Operation, status: int, model: Any, refs: Any) -> dict[str, Any]:
    if status >= 400 and model is None:
        forged = status == 401 and o.tag == "webhooks"
        return _problem("The signature does not fit" if forged else _SAID[status])
    answer: dict[str, Any] = {"description": _SAID[status]}
    content: dict[str, Any] = {}
    if model is not None:
        content["application/json"] = {"schema": refs[model, "serialization"]}
    if o.also is not None and status in {200, 206}:
        shapes = {name: refs[shape, "serialization"] for name, shape in o.events.items()}
        content[o.also] = {"x-event-data": shapes} if shapes else {}
    return answer | ({"content": content} if content else {})


def _problem(said: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model="Problem")}
    return {"description": said, "content": {"application/problem+json": {"schema": schema}}}


def _parameters(o: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", o.path)
    ]
    if o.query is not None:
        schema = o.query.model_json_schema(ref_template=_REF)
        for name, field in schema.get("properties", {}).items():
            found.append(
                {"name": name, "in": "query", "required": False, "schema": _inlined(field, schema)}
            )
    for name, description in o.headers.items():
        found.append(
            {
                "name": name,
                "in": "header",
                "required": False,
                "description": description,
                "schema": {"type": "string"},
            }
        )
    return found


def _inlined(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema without references: parameters have no place to put them."""
    options = field.get("anyOf", [field])
    kept = [o for o in options if o.get("type") != "null"]
    chosen = dict(kept[0]) if kept else {}
    if "$ref" in chosen:
        chosen = dict(schema["$defs"][chosen["$ref"].rsplit("/", 1)[1]])
    more = {k: field[k] for k in ("default", "description") if field.get(k) is not None}
    return {**chosen, **more}
