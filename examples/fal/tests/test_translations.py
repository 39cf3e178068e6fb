"""What the conformance suite cannot know: fal's own words."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from agentflow import Canceled, Changed, Delivery, Failed, ProviderError, Succeeded

from agentflow_fal.errors import KINDS, failure, translate
from agentflow_fal.provider import Run, cancel, ended, fact, parse, path_of
from agentflow_fal.results import result
from agentflow_fal.settings import FalSettings
from agentflow_fal.simulator import FalSimulator

FLAGGED = {"loc": ["body", "prompt"], "msg": "flagged", "type": "content_policy_violation"}
MISSING = {"loc": ["body", "prompt"], "msg": "field required", "type": "value_error.missing"}


def webhook(**body: Any) -> Any:
    return fact({"request_id": "1", "status": "OK", "payload": None, **body})


def answer(status: int, body: Any) -> httpx.Response:
    request = httpx.Request("GET", "https://queue.fal.run/a/b/requests/1")
    return httpx.Response(status, json=body, request=request)


def test_a_webhook_without_its_payload_is_fetched() -> None:
    assert webhook(payload_error="not serializable") == Changed()


def test_a_request_stopped_by_us_is_canceled() -> None:
    stopped = {"detail": "stopped", "error_type": "client_cancelled"}
    assert webhook(status="ERROR", payload=stopped) == Canceled()
    assert ended(answer(499, stopped)) == Canceled()


def test_an_error_without_a_body_says_what_the_webhook_says() -> None:
    said = webhook(status="ERROR", error="Invalid status code: 500")
    assert said == Failed(ProviderError("Invalid status code: 500"))


@pytest.mark.parametrize("type", KINDS)
def test_each_type_of_error_has_its_kind(type: str) -> None:
    said = failure({"detail": "why", "error_type": type})
    assert (said.kind, said.message) == (KINDS[type].kind, "why")
    listed = failure({"detail": [{"loc": ["body"], "msg": "why", "type": type}]})
    assert (listed.kind, listed.message) == (KINDS[type].kind, "why")


def test_an_input_the_model_refuses_is_named() -> None:
    said = failure({"detail": [MISSING]})
    assert (said.kind, said.message) == ("invalid_input", "prompt: field required")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (403, {"detail": "User is locked. Reason: Exhausted balance."}, "quota_exceeded"),
        (422, {"detail": [MISSING, FLAGGED]}, "content_rejected"),
        (404, {"detail": "Application 'x' not found"}, "invalid_input"),
        (403, {"detail": "Forbidden"}, None),
        (422, None, None),
        (500, {"detail": "It broke."}, None),
    ],
)
def test_a_refused_create_says_why(status: int, body: Any, kind: str | None) -> None:
    said = translate(
        httpx.HTTPStatusError("", request=httpx.Request("GET", "x:"), response=answer(status, body))
    )
    assert (said and said.kind) == kind


@pytest.mark.parametrize("status", [401, 403, 429, 502, 503, 504])
def test_a_question_that_failed_ends_no_job(status: int) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        ended(answer(status, {"detail": "no"}))


@pytest.mark.parametrize("status", [422, 500])
def test_a_result_that_is_an_error_is_the_models(status: int) -> None:
    assert isinstance(ended(answer(status, {"detail": "no"})), Failed)


def test_files_are_found_wherever_they_lie_and_once() -> None:
    payload = {
        "video": {"url": "https://v.fal.media/a.mp4"},
        "images": [{"url": "https://v.fal.media/b.png"}, {"url": "https://v.fal.media/b.png"}],
        "more": [{"mesh": {"url": "https://v.fal.media/c.glb", "file_size": 1}}],
        "sources": [{"url": "https://example.com/page"}],
        "image": {"url": "file:///etc/passwd"},
        "audio": {"url": None},
    }
    found = [artifact.url for artifact in result(payload).artifacts]
    assert found == [f"https://v.fal.media/{name}" for name in ("a.mp4", "b.png", "c.glb")]


def test_what_a_language_model_writes_is_text() -> None:
    assert result({"output": "hello"}).text == "hello"
    assert webhook(payload=[1]) == Succeeded(result([1]))


@pytest.mark.parametrize(
    ("model", "id", "path"),
    [
        ("fal-ai/flux", "1", "fal-ai/flux/requests/1"),
        ("fal-ai/flux/dev/image-to-image", "1", "fal-ai/flux/requests/1"),
        ("workflows/a/b/c", "1", "workflows/a/b/requests/1"),
        ("fal-ai/flux", "../x?y", "fal-ai/flux/requests/..%2Fx%3Fy"),
    ],
)
def test_a_request_is_asked_after_below_its_app(model: str, id: str, path: str) -> None:
    assert path_of(model, id) == path


def test_a_webhook_names_its_request() -> None:
    """So it is found also where the answer to the create was lost, and fetched where it is thin."""
    body = b'{"request_id": "1", "status": "OK", "payload": null, "payload_error": "too large"}'
    (told,) = parse(Delivery("fal", body))
    assert (told.event, told.external_id, told.id) == (Changed(), "1", "1")


def test_a_request_in_the_queue_is_canceled_at_once() -> None:
    async def story() -> None:
        async with FalSimulator().serve() as fal, httpx.AsyncClient() as http:
            fal.requests["1"] = {"id": "1", "status": "IN_QUEUE", "prompt": "queued"}
            settings = FalSettings(key="k:k", queue_url=fal.url)  # type: ignore[arg-type]
            call: Any = SimpleNamespace(settings=settings, http=http)
            assert await cancel(call, "1", Run(model="fal-ai/flux/dev")) == Canceled()
            assert await cancel(call, "1", Run(model="fal-ai/flux/dev")) is None

    asyncio.run(story())
