"""What a plugin's errors come to, in words that people can use and that hold no secret."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentflow import Provider, StaticHeader
from agentflow.core.providers import Task
from agentflow.core.results import ErrorInfo
from agentflow.errors import InvalidInput
from agentflow.plugins.catalogue import Catalogue, Ready
from agentflow.worker.outcomes import failure_of

KEY = "sk-very-secret-1234"


class Secrets(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ACME_")

    key: SecretStr = SecretStr(KEY)
    webhook_secret: SecretStr = SecretStr("")


def ready(**more: Any) -> tuple[Ready, Task[Any]]:
    provider = Provider("acme", settings=Secrets, **more)
    task = provider.task("do")(lambda call, input: None)
    return Catalogue([], [provider]).provider("acme"), task


def failed(error: BaseException) -> ErrorInfo:
    return failure_of(error, *ready(), unsure=True)


def answered(status: int, **body: Any) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://api.acme.example/jobs")
    response = httpx.Response(status, request=request, **body)
    return httpx.HTTPStatusError("", request=request, response=response)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"json": {"error": "no such voice"}}, ': {"error":"no such voice"}'),
        ({"text": "no\n  such voice"}, ": no such voice"),
        ({"html": "<h1>Bad gateway</h1>"}, ""),
        ({"content": b"\x00\x01"}, ""),
        ({"text": "x" * 5000}, ": " + "x" * 300),
        ({"stream": httpx.ByteStream(b"")}, ""),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_an_error_nobody_translated_says_what_the_provider_said(
    body: dict[str, Any], shown: str
) -> None:
    assert failed(answered(422, **body)).message == f"HTTP 422 from api.acme.example{shown}"


def test_a_key_is_cut_out_before_what_was_said_is_cut_short() -> None:
    said = failed(answered(401, text="x" * 290 + KEY)).message
    assert said.endswith("x***")


def test_a_key_in_the_detail_of_an_error_is_cut_out() -> None:
    detail = {"asked": {"headers": ["a", f"Bearer {KEY}"]}, "status": 401}
    found = failed(InvalidInput("no", detail=detail)).detail
    assert found == {"asked": {"headers": ["a", "Bearer ***"]}, "status": 401}


def test_a_webhook_key_that_is_missing_is_named_with_its_variable() -> None:
    scheme = StaticHeader("webhook_secret", "x-key")
    said = ready(webhooks="per_request", scheme=scheme)[0].webhook_problem
    assert said == (
        "ACME_WEBHOOK_SECRET: No webhook key is set: choose one of 16 or more characters"
    )
