"""Every answer a test meets is held against the OpenAPI document it comes with."""

from __future__ import annotations

import copy
import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

PROBLEM = "application/problem+json"
EVENTS = "text/event-stream"

LEAKS = re.compile(r"Traceback|pydantic|site-packages|\.py\b|input_value|sqlite|SELECT|/tmp/")
"""What no error may show: where it happened, and in what."""


class Contract:
    """Checks status, media type and body of each response; `met` is what was seen."""

    def __init__(self, page: dict[str, Any]) -> None:
        self.page = page
        self.met: set[tuple[str, str, int]] = set()
        self._paths = [
            (re.compile(re.sub(r"{\w+}", "[^/]+", path)), path, item)
            for path, item in page["paths"].items()
        ]
        resource = Resource(contents=_closed(page), specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource("urn:api", resource).crawl()
        self._validators: dict[str, Draft202012Validator] = {}

    async def check(self, response: httpx.Response) -> None:
        """An httpx event hook. Raises `AssertionError` for what the document does not say."""
        media = response.headers.get("content-type", "").split(";")[0]
        if media != EVENTS:
            await response.aread()
        status = response.status_code
        assert not 300 <= status < 400 or status == 304, "never a redirect"
        assert status < 500 or status == 503, f"{status}: {response.text}"
        path, operation = self._operation(response.request)
        if operation is None:
            assert response.request.url.path == "/openapi.json" or status in {404, 405}
        else:
            self.met.add((response.request.method, path, status))
            assert str(status) in operation["responses"], f"{path}: {status} is not documented"
        if status >= 400:
            self._check_error(response, media)
        if operation is not None and response.request.method != "HEAD":
            self._check_body(response, media, operation["responses"][str(status)])

    def _operation(self, request: httpx.Request) -> tuple[str, dict[str, Any] | None]:
        method = "get" if request.method == "HEAD" else request.method.lower()
        for pattern, path, item in self._paths:
            if pattern.fullmatch(request.url.path):
                return path, item.get(method)
        return request.url.path, None

    def _check_error(self, response: httpx.Response, media: str) -> None:
        if response.request.url.path == "/readyz" and response.status_code == 503:
            return
        assert media == PROBLEM, f"{response.status_code} {media}: {response.text[:200]}"
        if response.request.method == "HEAD":
            return
        said = response.json()
        self.validate(said, "Problem")
        assert said["status"] == response.status_code
        assert not LEAKS.search(response.text), response.text

    def _check_body(self, response: httpx.Response, media: str, said: dict[str, Any]) -> None:
        content = said.get("content", {})
        if not content:
            assert response.content == b""
        elif media in content:
            if "schema" in content[media] and media != EVENTS:
                self._validator(content[media]["schema"]).validate(response.json())
        else:
            assert "*/*" in content, f"{media} is not documented for {response.request.url.path}"

    def validate(self, said: Any, component: str) -> None:
        """Raises jsonschema's `ValidationError`."""
        self._validator({"$ref": f"#/components/schemas/{component}"}).validate(said)

    def _validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        ref = schema["$ref"]
        if ref not in self._validators:
            checker = Draft202012Validator.FORMAT_CHECKER
            assert "date-time" in checker.checkers, "rfc3339-validator is installed"
            self._validators[ref] = Draft202012Validator(
                {"$ref": f"urn:api{ref}"}, registry=self._registry, format_checker=checker
            )
        return self._validators[ref]


def _closed(page: dict[str, Any]) -> dict[str, Any]:
    """The document with every listed object closed, so that a field it does not name is found."""
    page = copy.deepcopy(page)
    for schema in page["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return page
