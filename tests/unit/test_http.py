"""Pieces of the HTTP plugin: pointers, paths, errors, and what a declaration may say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import agentflow_http
import pytest
from agentflow_http.asking import HttpGet, HttpRequest, bound_operation
from agentflow_http.auth import Redaction
from agentflow_http.declared import services
from agentflow_http.failures import failure, seconds
from agentflow_http.pointer import at, checked, every, put
from agentflow_http.provider import http_provider
from agentflow_http.service import Operation, Service, checked_path
from agentflow_http.session import Session
from agentflow_http.settings import HttpSettings
from agentflow_http.work import facts
from pydantic import ValidationError

from agentflow import (
    Changed,
    Delivery,
    Failed,
    InvalidInput,
    PermissionRefused,
    Progressed,
    SettingsError,
    Succeeded,
    guarded_client,
)
from agentflow.errors import ProviderFailure
from agentflow.plugins.catalogue import Catalogue
from agentflow.plugins.limiting import Limits

GOOD: dict[str, Any] = {"base_url": "https://api.example.com/v1"}
WORK: dict[str, Any] = {"id": "/id", "status": "/s", "succeeded": ["done"]}
HOOK: dict[str, Any] = {
    "scheme": {"kind": "github"}, "secret": "s" * 20, "id": "/id", "token": "/meta/token",
    "event": "/event", "status": "/s", "succeeded": ["done"], "failed": ["bad"],
    "running": ["busy"], "result": "/out", "error": "/why", "progress": "/share",
}  # fmt: skip


# Pointers


def test_a_pointer_finds_what_rfc_6901_says() -> None:
    document = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, " ": 7, 'k"l': 6}
    found = {p: at(document, p) for p in ("", "/foo", "/foo/0", "/", "/a~1b", "/m~0n", "/ ")}
    assert list(found.values()) == [document, ["bar", "baz"], "bar", 0, 1, 8, 7]
    for nothing in ("/foo/2", "/foo/-", "/foo/01", "/foo/bar", "/no", "/foo/0/x"):
        assert at(document, nothing) is None
    for odd in ("foo", "/~2", "/~"):
        with pytest.raises(ValueError, match="pointer"):
            checked(odd)


def test_a_star_is_every_element() -> None:
    document = {"images": [{"url": 1}, {"no": 2}, {"url": 3}], "by": {"a": {"url": 4}}}
    assert list(every(document, "/images/*/url")) == [1, 3]
    assert list(every(document, "/by/*/url")) == [4]


def test_putting_makes_the_way() -> None:
    document: dict[str, Any] = {"a": 1, "m": {"x": 1}}
    for place, value in (("b", 2), ("/m/t", 3), ("/new/er", 4), ("/a/deep", 5)):
        put(document, place, value)
    assert document == {"a": {"deep": 5}, "m": {"x": 1, "t": 3}, "b": 2, "new": {"er": 4}}


# Paths and inputs


@pytest.mark.parametrize("path", ["/", "/a", "/a.b/~c/%C3%BC", "/a:b,c;d=e", "/a/"])
def test_a_plain_path_is_admitted(path: str) -> None:
    assert checked_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "a", "//a", "/a//b", "/.", "/../a", "/a/..", "/%2e%2E/", "/a%2fb", "/a%5cb", "/%00", "/%",
     "/a?b", "/a#b", "/a b", "/ü", "/a\\b", "/a\n"],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|segments"):
        checked_path(path)


@pytest.mark.parametrize(
    "name",
    ["Authorization", "proxy-authorization", "Cookie", "x-api-key", "X-ApiKey", "X-Auth", "X-Token",
     "Client-Secret", "X-Password", "Signature", "Host", "Content-Length", "Transfer-Encoding",
     "a b", "", "x:y"],
)  # fmt: skip
def test_a_header_that_is_secret_or_not_theirs_is_refused(name: str) -> None:
    url = "https://a.example"
    with pytest.raises(ValidationError):
        HttpRequest.model_validate({"url": url, "headers": {name: "x"}})
    HttpRequest.model_validate({"url": url, "headers": {"X-Trace-Id": "x"}})


# Errors


@pytest.mark.parametrize(
    ("status", "unsure", "headers", "kind"),
    [
        (301, True, {}, "provider_error"),
        (404, True, {}, "invalid_input"),
        (409, True, {}, "invalid_input"),
        (429, True, {}, "rate_limited"),
        (425, True, {}, "unavailable"),
        (500, True, {}, "outcome_unknown"),
        (500, False, {}, "unavailable"),
        (503, True, {}, "outcome_unknown"),
        (503, True, {"retry-after": "3"}, "unavailable"),
        (504, True, {"retry-after": "3"}, "outcome_unknown"),
        (418, True, {}, "content_rejected"),
    ],
)
def test_a_status_has_its_kind(
    status: int, unsure: bool, headers: dict[str, str], kind: str
) -> None:
    said = failure(status, headers, b"", unsure=unsure, overrides={"418": "content_rejected"})
    assert isinstance(said, ProviderFailure)
    assert (said.kind.value, said.detail) == (kind, {"status": status})


def test_a_conflict_of_an_idempotency_key_is_waited_out() -> None:
    assert failure(409, {}, b"", unsure=True, overrides={}, once=True).retryable


@pytest.mark.parametrize(
    ("body", "place", "sentence"),
    [
        ({"error": {"message": "a"}}, None, "a"), ({"error": "b"}, None, "b"),
        ({"detail": "c"}, None, "c"), ({"detail": [1]}, None, ""), ([], None, ""),
        ({"message": "d", "why": "e"}, "/why", "e"), ({"message": "d"}, "/why", ""),
    ],
)  # fmt: skip
def test_the_sentence_of_an_error_is_found(body: Any, place: str | None, sentence: str) -> None:
    told = json.dumps(body).encode()
    said = failure(400, {}, told, unsure=True, overrides={}, message=place)
    assert said.message == f"HTTP 400. {sentence}".strip()


def test_retry_after_is_seconds_or_a_date() -> None:
    assert seconds("7", 0) == 7.0
    assert seconds("9" * 11, 0) == 86_400.0
    assert seconds("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    assert seconds("Thu, 01 Jan 1970 00:01:40 GMT", 200.0) == 0.0
    for odd in ("", "soon", "-1", "1.5", "٣"):
        assert seconds(odd, 0) is None


def test_redaction_reaches_names_and_depths() -> None:
    cut = Redaction("secret-1", "secret-1-and-more", "tiny")
    told = {"a secret-1": ["x secret-1-and-more", 7, None, {"t": "tiny"}]}
    assert cut.document(told) == {"a ***": ["x ***", 7, None, {"t": "tiny"}]}


# Declarations

OAUTH = {"kind": "oauth2", "token_url": "http://x", "client_id": "a", "client_secret": "b"}
TWICE = WORK | {"status_path": "/{id}", "failed": ["done"]}
BAD: list[dict[str, Any]] = [
    {},
    {"base_url": "api.example.com"},
    {"base_url": "http://api.example.com"},
    {"base_url": "https://me:pw@api.example.com"},
    {"base_url": "https://api.example.com/?a=b"},
    GOOD | {"what": 1},
    GOOD | {"auth": {"kind": "magic"}},
    GOOD | {"auth": {"kind": "bearer"}},
    GOOD | {"auth": OAUTH},
    GOOD | {"methods": ["TRACE"]},
    GOOD | {"errors": {"404": "lost"}},
    GOOD | {"errors": {"200": "result_lost"}},
    GOOD | {"tasks": {"get": {"path": "/x"}}},
    GOOD | {"tasks": {"A": {"path": "/x"}}},
    GOOD | {"tasks": {"a": {"path": "/../{x}"}}},
    GOOD | {"tasks": {"a": {"path": "/x", "work": WORK}}},  # nothing tells how it ends
    GOOD | {"tasks": {"a": {"path": "/x", "work": WORK | {"status_path": "/x"}}}},
    GOOD | {"tasks": {"a": {"path": "/x", "work": TWICE}}},
    GOOD | {"webhook": HOOK | {"scheme": {"kind": "github", "secret": "x"}}},
    GOOD | {"webhook": HOOK | {"id": "id"}},
    GOOD | {"webhook": HOOK | {"result": None}, "tasks": {"a": {"path": "/x", "work": WORK}}},
]  # fmt: skip


@pytest.mark.parametrize("given", BAD, ids=str)
def test_a_service_that_cannot_be_is_refused(given: dict[str, Any]) -> None:
    (problem,) = services(json.dumps({"acme": given})).values()
    assert isinstance(problem, str)
    assert "pw" not in problem


@pytest.mark.parametrize("text", ["{", "[]", '{"A": {}}', '{"a-b": {}}', "no/such/file.json"])
def test_what_cannot_be_read_at_all_ends_the_plugin_with_a_sentence(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_HTTP_SERVICES", text)
    with pytest.raises(SettingsError, match="AGENTFLOW_HTTP_SERVICES"):
        agentflow_http.agentflow_providers()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOSTS", '["https://api.example.com"]'), ("HOSTS", '["api.example.com:80"]'),
        ("HOSTS", '[""]'), ("HOSTS", "[api.example.com]"), ("HOSTS", "[7]"),
        ("PRIVATE", '["internal"]'), ("PRIVATE", '["10.0.0.0/99"]'), ("PRIVATE", '["http://internal:80"]'),
        ("PRIVATE", '["internal:0"]'), ("MAX_RESPONSE", "0"),
    ],
)  # fmt: skip
def test_a_wrong_setting_ends_the_plugin_and_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AGENTFLOW_HTTP_{name}", value)
    with pytest.raises(SettingsError, match=f"AGENTFLOW_HTTP_{name}"):
        agentflow_http.agentflow_providers()


def test_what_may_be_called_is_said_in_every_way_that_the_page_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AGENTFLOW_HTTP_HOSTS", '["*", "api.example.com", "*.x.com", "10.0.0.1"]')
    private = '["in:80", "10.0.0.1:8080", "[::1]:80", "10.0.0.0/8", "fd00::/8"]'
    monkeypatch.setenv("AGENTFLOW_HTTP_PRIVATE", private)
    read = HttpSettings.read()
    assert (len(read.hosts), len(read.private)) == (4, 5)
    monkeypatch.setenv("AGENTFLOW_HTTP_HOSTS", "a.example.com, *.x.com")
    assert HttpSettings.read().hosts == {"a.example.com", "*.x.com"}
    guarded_client(read.private)


def test_services_lie_in_json_or_toml_and_their_secrets_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", " key-of-acme ")
    toml = '[acme]\nbase_url = "https://a.example"\n'
    toml += 'auth = {kind = "bearer", token = {env = "ACME_KEY"}}\n'
    auth = {"kind": "bearer", "token": {"env": "ACME_KEY"}}
    (tmp_path / "s.toml").write_text(toml)
    (tmp_path / "s.json").write_text(
        json.dumps({"acme": {"base_url": "https://a.example", "auth": auth}})
    )
    for name in ("s.toml", "s.json"):
        acme = services(str(tmp_path / name))["acme"]
        assert isinstance(acme, Service)
        assert acme.auth is not None
        assert acme.auth.headers() == {"authorization": "Bearer key-of-acme"}
        assert "key-of-acme" not in repr(acme)


# Webhooks


def told(body: Any, token: str | None = None, **changes: Any) -> list[Any]:
    tasks = {"a": {"path": "/x", "work": WORK | {"status_path": "/{id}"}}}
    service = Service.model_validate(GOOD | {"webhook": HOOK | changes, "tasks": tasks})
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return facts(Delivery("acme", raw, token=token), service)


def test_a_webhook_is_read_as_declared() -> None:
    said = {"id": 7, "s": "done", "out": {"n": 1}, "meta": {"token": "t"}, "event": "e"}
    (fact,) = told(said)
    assert (fact.external_id, fact.token, fact.id) == ("7", "t", "e")
    assert fact.event.result.output == {"n": 1}
    kinds = {"busy": Progressed, "bad": Failed, "done": Succeeded, "other": Changed}
    for word, kind in kinds.items():
        (fact,) = told(said | {"s": word, "share": 0.5, "why": "because"})
        assert isinstance(fact.event, kind)
    assert isinstance(told(said | {"out": None})[0].event, Changed)
    assert told({"s": "done", "out": 1}) == []
    assert told({"s": "done", "out": 1}, token="t")[0].external_id is None


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", [], 5, None, "x", {"id": "a"}, {"id": "a", "s": None},
     {"id": "a", "s": {}}, {"id": ["a"], "s": "done"}, {"id": "", "s": "done"},
     {"id": "x" * 256, "s": "done"}, {"id": "..", "s": "done"}],
    ids=str,
)  # fmt: skip
def test_a_webhook_that_makes_no_sense_says_nothing(body: Any) -> None:
    assert told(body) == []


def test_no_id_of_work_leads_to_another_path() -> None:
    session = Session("acme", Service.model_validate(GOOD))
    assert session.url("/v/{id}", "a/../b?c") == "https://api.example.com/v1/v/a%2F..%2Fb%3Fc"
    for dots in (".", ".."):
        with pytest.raises(InvalidInput):
            session.url("/v/{id}", dots)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v2/x", "https://api.example.com/v1x", "https://api.example.com/",
        "https://api.example.com/v1/../v2", "https://api.example.com/v1/%2e%2e/v2",
        "https://api.example.com:444/v1/x", "http://api.example.com/v1/x",
        "https://api.example.com.evil.com/v1/x", "https://evil.com/v1/x",
    ],
)  # fmt: skip
async def test_credentials_go_to_what_is_below_the_base_url_alone(url: str) -> None:
    auth = {"kind": "bearer", "token": "secret-token"}
    provider = http_provider({"acme": Service.model_validate(GOOD | {"auth": auth})})
    call: Any = SimpleNamespace(settings=HttpSettings())
    for name, model in (("http.get", HttpGet), ("http.request", HttpRequest)):
        with pytest.raises(PermissionRefused):
            await provider.tasks[name].function(call, model(url=url, auth="acme"))


def test_a_429_of_http_is_about_one_host() -> None:
    limits = Limits(Catalogue([], [http_provider({})]))
    pauses = [
        limits.for_call(task, {"url": url}).options[0].pauses
        for task, url in (
            ("http.get", "https://a.example.com/x"), ("http.request", "https://A.example.com/y?z"),
            ("http.get", "https://b.example.com/x"), ("http.get", "http://["),
        )
    ]  # fmt: skip
    assert pauses[0] == pauses[1]
    assert len({each[-1] for each in pauses}) == 3
    assert pauses[3] == (pauses[0][0],)


@pytest.mark.parametrize("value", [None, "x", {"deep": ["x"]}, 5, [], True, 1e400])
def test_any_value_anywhere_is_read(value: Any) -> None:
    for name in ("out", "why", "share", "meta", "event"):
        for word in ("done", "bad", "busy"):
            said = json.dumps({"id": "a", "s": word, "out": {}, name: value})
            assert len(told(said.replace("Infinity", "1").encode())) == 1


def test_importing_the_plugin_loads_no_http_client() -> None:
    import subprocess
    import sys

    code = "import agentflow_http, sys; agentflow_http.agentflow_providers()\n"
    code += "print({'httpx', 'starlette', 'tortoise', 'cryptography'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_schema_of_a_declared_task_names_what_the_declaration_does() -> None:
    declared = Operation(path="/orders/{customer}/{kind}", defaults={"amount": 1, "kind": "plain"})
    schema = bound_operation("shop_order", declared).model_json_schema()
    part = {"type": ["string", "integer"]}
    assert schema["properties"] == {
        "customer": part,
        "kind": {**part, "default": "plain"},
        "amount": {"default": 1},
    }
    assert schema["required"] == ["customer"]
    assert schema["additionalProperties"], "the service may admit more"
    assert "required" not in bound_operation("x", Operation(path="/x")).model_json_schema()
