"""The OpenAPI document says what the routes do, no more and no less."""

from __future__ import annotations

import inspect
import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from agentflow.types import VERSION
from agentflow.web.openapi import document
from agentflow.web.server import OPENAPI, OPERATIONS, create_web

PAGE = document(OPERATIONS)
DESCRIBED = {(m, path): o for path, item in PAGE["paths"].items() for m, o in item.items()}


def test_the_document_is_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(PAGE).validate()
    assert PAGE["openapi"].startswith("3.1")
    assert PAGE["info"]["version"] == VERSION


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    routed = {
        (method.lower(), route.path)
        for route in create_web().routes
        if isinstance(route, Route) and route.path != OPENAPI
        for method in route.methods or ()
        if method != "HEAD"  # what GET says, without the body
    }
    assert len(create_web().routes) == len({path for _, path in routed}) + 1, "nothing but routes"
    assert routed == set(DESCRIBED)


def test_operations_have_names_of_their_own_and_a_sentence() -> None:
    names = [o["operationId"] for o in DESCRIBED.values()]
    assert len(set(names)) == len(names)
    assert all(o["summary"] and not o["summary"].endswith(".") for o in DESCRIBED.values())


@pytest.mark.parametrize("where", DESCRIBED, ids=" ".join)
def test_an_operation_says_what_can_become_of_it(where: tuple[str, str]) -> None:
    operation, path = DESCRIBED[where], where[1]
    answers = operation["responses"]
    assert any(status < "300" for status in answers)
    for status, answer in answers.items():
        if status >= "400" and (path, status) != ("/readyz", "503"):
            assert set(answer["content"]) == {"application/problem+json"}
    in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
    assert in_path == set(re.findall(r"{(\w+)}", path))
    assert ("404" in answers) == bool(in_path)
    if any(p["in"] == "query" for p in operation["parameters"]):
        assert "422" in answers
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        assert {"400", "413", "422"} <= set(answers)
    assert ("503" in answers) == (path != "/healthz")


def test_every_header_that_is_read_is_described() -> None:
    modules = {inspect.getmodule(o.endpoint) for o in OPERATIONS}
    read = re.findall(
        r'headers\.get(?:list)?\("([\w-]+)"', "".join(map(inspect.getsource, modules))
    )
    described = {name.lower() for o in OPERATIONS for name in o.headers}
    assert set(read) == described
    assert {"prefer", "last-event-id", "range"} <= described


def test_every_schema_is_used() -> None:
    text = str(PAGE)
    for name in PAGE["components"]["schemas"]:
        assert f"#/components/schemas/{name}'" in text
