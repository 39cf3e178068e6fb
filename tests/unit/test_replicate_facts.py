"""Replicate's words in ours: predictions, errors, input and settings. Nothing here calls anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import replicate.exceptions
from agentflow_replicate import Predict, ReplicateSettings, agentflow_providers, fact, provider
from agentflow_replicate.facts import fraction
from agentflow_replicate.failures import (
    TABLE,
    asked_wait,
    failure,
    meaning,
    refusal,
    told_wait,
)
from agentflow_replicate.provider import parse, type_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentflow import (
    Artifact,
    AuthenticationFailed,
    CallTimeout,
    Canceled,
    Changed,
    ContentRejected,
    Delivery,
    Fact,
    Failed,
    InvalidInput,
    OutcomeUnknown,
    PermissionRefused,
    Progressed,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    ResultLost,
    Succeeded,
    Unavailable,
)

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


def prediction(**changes: Any) -> dict[str, Any]:
    """As the "receive webhooks" page shows one."""
    shown = {
        "id": "ufawqhfynnddngldkgtslldrkq",
        "version": VERSION,
        "created_at": "2022-04-26T22:13:06.224088Z",
        "started_at": None,
        "completed_at": None,
        "status": "starting",
        "input": {"text": "Alice"},
        "output": None,
        "error": None,
        "logs": None,
        "metrics": {},
    }
    return shown | changes


def result_of(**changes: Any) -> Any:
    state = fact(prediction(status="succeeded", **changes))
    assert isinstance(state, Succeeded)
    return state.result


def error_of(**changes: Any) -> Any:
    state = fact(prediction(**changes))
    assert isinstance(state, Failed)
    return state.error


# Predictions


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("starting", Progressed),
        ("processing", Progressed),
        ("succeeded", Succeeded),
        ("failed", Failed),
        ("canceled", Canceled),
        ("aborted", Failed),
        ("paused", Changed),
        (None, Changed),
        (7, Changed),
        (["succeeded"], Changed),
    ],
)
def test_every_status_is_a_fact_about_the_same_prediction(status: Any, kind: type) -> None:
    state = fact(prediction(status=status))
    assert type(state) is kind
    assert state.external_id == "ufawqhfynnddngldkgtslldrkq"


def test_absent_keys_are_as_good_as_null_ones() -> None:
    for status in ("starting", "processing", "succeeded", "failed", "canceled", "aborted"):
        assert fact({"id": "p", "status": status}).external_id == "p"


def test_an_aborted_prediction_had_no_effect_and_may_be_retried() -> None:
    error = error_of(status="aborted")
    assert error.kind == CallTimeout.kind
    assert error.retryable


def test_a_removed_output_is_lost() -> None:
    assert error_of(status="succeeded", data_removed=True).kind == ResultLost.kind
    assert result_of(data_removed=False, output="kept").output == "kept"


@pytest.mark.parametrize(
    ("said", "kind", "retryable"),
    [
        ("CUDA out of memory", ProviderError.kind, False),
        ("NSFW content detected. Try running it again.", ContentRejected.kind, False),
        ("The input or output was flagged as sensitive. (E005)", ContentRejected.kind, False),
        ("Prediction interrupted; please retry (code: PA)", ProviderError.kind, True),
        (
            "Director: unexpected error handling prediction (E6716)",
            ProviderError.kind,
            True,
        ),
        (None, ProviderError.kind, False),
        ({"odd": 1}, ProviderError.kind, False),
        ("x" * 9000, ProviderError.kind, False),
    ],
)
def test_why_a_prediction_failed(said: Any, kind: str, retryable: bool) -> None:
    error = error_of(status="failed", error=said)
    assert (error.kind, error.retryable) == (kind, retryable)
    assert error.message
    assert len(error.message) <= 2000


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        (None, None),
        (17, None),
        ("", None),
        ("Using 45% of memory", None),
        ("  0%|          | 0/16 [00:00<?, ?it/s]", 0.0),
        (" 45%|████▌     | 23/50 [00:01<00:02, 12.3it/s]", 0.45),
        ("Seed: 1\n 10%|█ | 1/10\r 20%|██ | 2/10", 0.2),
        ("100%|██████████| 16/16 [00:02<00:00]\n  0%|          | 0/5", 0.0),
        ("999%|", 1.0),
        (" 90%|" + "x" * 10_000, None),
    ],
)
def test_progress_is_the_last_bar_in_the_logs(logs: Any, expected: float | None) -> None:
    assert fraction(logs) == expected
    assert fact(prediction(status="processing", logs=logs)) == Progressed(
        expected, "processing", external_id="ufawqhfynnddngldkgtslldrkq"
    )


# Results


def test_the_files_of_an_output_are_found_in_order_and_the_output_kept() -> None:
    output = {
        "image": "https://replicate.delivery/a/out-0.png",
        "more": [{"mask": "https://replicate.delivery/b/my%20mask.png?sig=1"}, 3, "http://a.b"],
        "inline": "data:image/webp;base64,UklGRg==",
        "note": "see https://replicate.delivery/a/out-0.png",
    }
    result = result_of(output=output)
    assert result.output == output
    assert result.text is None
    assert result.artifacts == (
        Artifact("https://replicate.delivery/a/out-0.png", "out-0.png"),
        Artifact("https://replicate.delivery/b/my%20mask.png?sig=1", "my mask.png"),
        Artifact("http://a.b"),
        Artifact("data:image/webp;base64,UklGRg==", media_type="image/webp"),
    )


def test_a_file_expires_an_hour_after_the_prediction_ended() -> None:
    url = "https://replicate.delivery/a/out-0.png"
    ended = "2026-11-23T10:00:00.123456789Z"
    (file,) = result_of(output=url, completed_at=ended).artifacts
    assert file.expires_at == datetime(2026, 11, 23, 11, 0, 0, 123456, UTC)


@pytest.mark.parametrize("ended", [None, 7, "", "yesterday", "9999-12-31T23:30:00Z", {}])
def test_a_prediction_that_does_not_say_when_it_ended_leaves_it_to_the_policy(ended: Any) -> None:
    url = "https://replicate.delivery/a/out-0.png"
    assert result_of(output=url, completed_at=ended).artifacts[0].expires_at is None
    assert provider.tasks["replicate.predict"].policy.files_live == 3600


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("hello Alice", "hello Alice"),
        (["Once", " upon", ""], "Once upon"),
        ([], None),
        (["a", 1], None),
        ({"a": "b"}, None),
        (None, None),
        ("data: not a file, only words", "data: not a file, only words"),
        (["see ", "https://", "x y"], "see https://x y"),
        ("http://[", "http://["),
        ("https://replicate.delivery/x.png", None),
        (["https://replicate.delivery/x.png"], None),
    ],
)
def test_text_is_what_a_language_model_wrote(output: Any, text: str | None) -> None:
    assert result_of(output=output).text == text


def test_usage_counts_what_replicate_counts() -> None:
    metrics = {
        "predict_time": 2.5,
        "total_time": 3,
        "input_token_count": 7,
        "odd": "x",
        "flag": True,
        "nan": float("nan"),
    }
    assert result_of(metrics=metrics).usage == {
        "predict_seconds": 2.5,
        "total_seconds": 3,
        "input_token_count": 7,
    }
    assert result_of(metrics=[1]).usage == {}
    assert result_of().cost is None


def test_a_deep_output_is_no_problem() -> None:
    output: Any = "https://replicate.delivery/deep.png"
    for _ in range(5000):
        output = [output]
    assert result_of(output=output).artifacts[0].name == "deep.png"


# Webhooks

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
statuses = st.sampled_from(["starting", "succeeded", "failed", "canceled", "aborted", "new"])
keys = ("output", "logs", "error", "metrics", "data_removed")
predictions = st.fixed_dictionaries(
    {"id": st.text(), "status": statuses}, optional=dict.fromkeys(keys, values)
)


def delivery(body: Any) -> Delivery:
    return Delivery("replicate", body if isinstance(body, bytes) else json.dumps(body).encode())


def test_a_delivery_is_one_fact_about_its_prediction() -> None:
    done = prediction(status="succeeded", output="hi")
    assert parse(delivery(done)) == [Fact(fact(done), external_id=done["id"])]
    assert type_of(delivery(done)) == "succeeded"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", [], 1, {}, {"id": None}, {"id": ""}])
def test_what_is_no_prediction_says_nothing(body: Any) -> None:
    assert parse(delivery(body)) == []
    assert type_of(delivery(body)) is None


@given(body=values | predictions)
def test_no_delivery_makes_the_parser_raise(body: Any) -> None:
    for found in parse(delivery(body)):
        assert found.external_id
    type_of(delivery(body))


# Errors


def exceptions_of(module: Any, base: type[Exception]) -> list[type[Exception]]:
    return [
        each for each in vars(module).values() if isinstance(each, type) and issubclass(each, base)
    ]


def test_every_exception_of_the_sdk_and_of_httpx_has_a_meaning() -> None:
    known = exceptions_of(replicate.exceptions, Exception) + exceptions_of(httpx, Exception)
    assert len(known) > 25
    for each in known:
        bare = each.__new__(each)
        if each is httpx.ResponseNotRead or each is httpx.RequestNotRead:
            continue  # misuse of httpx, by code that we do not write
        assert meaning(bare) is not None, each


def test_the_table_names_nothing_that_is_gone() -> None:
    known = {
        f"{each.__module__}.{each.__qualname__}"
        for module in (replicate.exceptions, httpx)
        for each in exceptions_of(module, Exception)
    }
    assert set(TABLE) - known == {"builtins.TimeoutError"}


@pytest.mark.parametrize(
    ("error", "create", "kind", "retryable"),
    [
        (httpx.ConnectError("x"), True, Unavailable, True),
        (httpx.ConnectTimeout("x"), True, Unavailable, True),
        (httpx.PoolTimeout("x"), True, Unavailable, True),
        (httpx.ProxyError("x"), True, Unavailable, True),
        (httpx.UnsupportedProtocol("x"), True, Unavailable, False),
        (httpx.LocalProtocolError("x"), True, Unavailable, False),
        (httpx.ReadTimeout("x"), True, OutcomeUnknown, False),
        (httpx.WriteTimeout("x"), True, OutcomeUnknown, False),
        (httpx.ReadError("x"), True, OutcomeUnknown, False),
        (httpx.WriteError("x"), True, OutcomeUnknown, False),
        (httpx.RemoteProtocolError("x"), True, OutcomeUnknown, False),
        (httpx.DecodingError("x"), True, OutcomeUnknown, False),
        (TimeoutError(), True, OutcomeUnknown, False),
        (httpx.ReadTimeout("x"), False, Unavailable, True),
        (TimeoutError(), False, Unavailable, True),
        (replicate.exceptions.ReplicateError(detail="no status"), True, ProviderError, False),
    ],
)
def test_whether_bytes_left_decides(
    error: Exception, create: bool, kind: type, retryable: bool
) -> None:
    found = failure(error, create=create)
    assert found is not None
    assert type(found) is kind
    assert found.retryable is retryable


@pytest.mark.parametrize(
    ("status", "create", "other"),
    [
        (401, AuthenticationFailed, AuthenticationFailed),
        (402, QuotaExceeded, QuotaExceeded),
        (403, PermissionRefused, PermissionRefused),
        (400, InvalidInput, InvalidInput),
        (404, InvalidInput, InvalidInput),
        (422, InvalidInput, InvalidInput),
        (429, RateLimited, RateLimited),
        (408, OutcomeUnknown, Unavailable),
        (500, OutcomeUnknown, Unavailable),
        (502, OutcomeUnknown, Unavailable),
        (503, OutcomeUnknown, Unavailable),
        (504, OutcomeUnknown, Unavailable),
        (520, OutcomeUnknown, Unavailable),
        (302, ProviderError, ProviderError),
    ],
)
def test_what_a_status_comes_to(status: int, create: type, other: type) -> None:
    assert type(refusal(status, "why")) is create
    assert type(refusal(status, "why", create=False)) is other


def answered(status: int, body: Any = None, **headers: str) -> replicate.exceptions.ReplicateError:
    """The SDK's error with its response behind it, as the session raises it."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(status, json=body or {}, headers=names)
    error = replicate.exceptions.ReplicateError.from_response(response)
    request = httpx.Request("POST", "https://api.replicate.com/v1/predictions")
    error.__cause__ = httpx.HTTPStatusError("x", request=request, response=response)
    return error


def test_a_named_time_to_come_back_means_turned_away() -> None:
    found = failure(answered(503, retry_after="7"))
    assert type(found) is Unavailable
    assert found.retry_after == 7
    assert type(failure(answered(503, ratelimit_reset="1"))) is OutcomeUnknown


def test_a_rate_limit_says_when_it_ends() -> None:
    body = {"detail": "Request was throttled. Your rate limit resets in ~30s.", "status": 429}
    found = failure(answered(429, body, ratelimit_reset="1"))
    assert type(found) is RateLimited
    assert found.retry_after == 30
    assert found.detail == {"status": 429}
    assert "throttled" in found.message


def test_waits_are_read_from_headers_and_words() -> None:
    now = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    assert asked_wait({"retry-after": "12"}) == 12
    assert asked_wait({"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}, now) == 30
    assert asked_wait({"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT"}, now) == 0
    for odd in ("soon", "-1", "nan", "inf", ""):
        assert asked_wait({"retry-after": odd}) is None
    assert told_wait({"ratelimit-reset": "4"}, "no number") == 4
    assert told_wait({}, "no number") is None


def test_strange_errors_are_not_ours() -> None:
    assert failure(KeyError("x")) is None
    ours = InvalidInput("x")
    assert failure(ours) is ours
    assert provider.translator is not None
    assert type(provider.translator(httpx.ReadTimeout("x"))) is OutcomeUnknown


# Input and settings


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ({"model": "owner/na.me-1"}, {"model": "owner/na.me-1"}),
        ({"model": f"owner/name:{VERSION}"}, {"version": VERSION}),
        ({"version": VERSION}, {"version": VERSION}),
        ({"deployment": "acme/shop"}, {"deployment": "acme/shop"}),
    ],
)
def test_what_to_run_is_named_in_one_way(given: dict[str, str], target: dict[str, str]) -> None:
    assert Predict.model_validate({**given, "input": {}}).target() == target


@pytest.mark.parametrize(
    "given",
    [
        {"input": {}},
        {"model": "a/b"},
        {"model": "a/b", "version": VERSION, "input": {}},
        {"model": "a/b", "input": {}, "wait": 5},
        {"model": "name", "input": {}},
        {"model": "a/b:v1", "input": {}},
        {"model": "../b", "input": {}},
        {"model": "a/..", "input": {}},
        {"model": "a/b\n", "input": {}},
        {"model": "a/b/c", "input": {}},
        {"deployment": "a/b?x=1", "input": {}},
        {"version": VERSION.upper(), "input": {}},
        {"model": "a/b", "input": []},
    ],
)
def test_what_names_nothing_to_run_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Predict.model_validate(given)


def test_settings_come_from_the_names_the_sdk_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", " r8_secret\n")
    monkeypatch.setenv("REPLICATE_BASE_URL", "https://proxy.example/v1/")
    monkeypatch.setenv("REPLICATE_WEBHOOK_SECRET", "whsec_a,whsec_b")
    monkeypatch.setenv("REPLICATE_OUTPUT_HOSTS", "127.0.0.1, *.example.com")
    settings = ReplicateSettings()
    assert settings.api_token.get_secret_value() == "r8_secret"
    assert settings.base_url == "https://proxy.example"
    assert settings.output_hosts == ("127.0.0.1", "*.example.com")
    assert "r8_secret" not in repr(settings)
    assert "whsec" not in repr(settings)


def test_settings_have_safe_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_TOKEN", "BASE_URL", "WEBHOOK_SECRET", "OUTPUT_HOSTS"):
        monkeypatch.setenv(f"REPLICATE_{name}", "")
    settings = ReplicateSettings()
    assert settings.base_url == "https://api.replicate.com"
    assert "*.replicate.delivery" in settings.output_hosts
    with pytest.raises(ValidationError):
        ReplicateSettings(base_url="http://api.replicate.com")
    with pytest.raises(ValidationError):
        ReplicateSettings(base_url="api.replicate.com")


# The plugin


def test_the_plugin_describes_itself() -> None:
    assert agentflow_providers() == [provider]
    assert provider.webhooks == "per_request"
    task = provider.tasks["replicate.predict"]
    assert not task.policy.repeatable
    assert task.policy.on_unknown == "fail"
    assert task.policy.poll_max <= 300
    able = task.abilities(webhooks=True)
    assert able.fetch
    assert able.find
    assert able.cancel
    assert callable(provider.artifact_hosts)
    assert provider.artifact_hosts(ReplicateSettings(output_hosts=("x",))) == ("x",)


def test_loading_the_plugin_loads_no_sdk() -> None:
    code = (
        "import sys, agentflow_replicate\n"
        "print([m for m in ('replicate', 'httpx', 'uvicorn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
