"""Numbers with few labels, spans without secrets, log lines for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import structlog
from opentelemetry import trace
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from structlog.contextvars import bound_contextvars
from support.tracing import recording, trace_id

from agentflow import logs
from agentflow.telemetry import traces
from agentflow.telemetry.metrics import OTHER, Metrics

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# -- numbers -----------------------------------------------------------------------------------


def numbers(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Samples by their name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_each_registry_is_its_own() -> None:
    before = {metric.name for metric in REGISTRY.collect()}
    one, two = Metrics(["a.b"]), Metrics(["a.b"])
    one.submitted[("a.b",)].inc()
    assert numbers(one)["agentflow_jobs_submitted_total", "a.b"] == 1
    assert ("agentflow_jobs_submitted_total", "a.b") not in numbers(two)
    assert {metric.name for metric in REGISTRY.collect()} == before


def test_a_name_that_is_not_installed_is_no_label() -> None:
    metrics = Metrics(["a.b"], ["a"])
    assert (metrics.task("a.b"), metrics.task("gone.task")) == ("a.b", OTHER)
    assert (metrics.provider("a"), metrics.provider("x")) == ("a", OTHER)
    assert (metrics.method("GET"), metrics.method("PROPFIND")) == ("GET", OTHER)


def test_no_label_is_an_id_or_a_tenant() -> None:
    names = {label for m in Metrics().registry._names_to_collectors.values() for label in labels(m)}
    assert {"task", "status", "route", "provider"} <= names
    assert not names & {"job", "job_id", "tenant", "entity", "key", "worker", "token"}


def labels(collector: object) -> tuple[str, ...]:
    return tuple(getattr(collector, "_labelnames", ()))


def test_a_gauge_forgets_what_is_not_there_any_more() -> None:
    metrics = Metrics()
    waiting = metrics.gauge("waiting", "Test.", "status")
    waiting.reset({("queued",): 3, ("running",): 1})
    waiting.reset({("queued",): 2})
    found = {k: v for k, v in numbers(metrics).items() if k[0] == "agentflow_waiting"}
    assert found == {("agentflow_waiting", "queued"): 2}


def test_the_page_has_no_instants_of_creation() -> None:
    metrics = Metrics()
    metrics.calls["a.b", "succeeded"].observe(0.2)
    assert "_created" not in metrics.text().decode()
    assert "agentflow_build_info" in metrics.text().decode()


# -- spans -------------------------------------------------------------------------------------


def test_a_traceparent_goes_round() -> None:
    assert traces.current() is None
    with recording() as spans:
        with traces.span("first") as first:
            handed = traces.current()
        with traces.span("second", traces.context_of(handed)):
            pass
    assert handed is not None
    assert len(handed) == 55  # what the column takes
    assert trace_id(spans.named("first")) == trace_id(spans.named("second")) == handed[3:35]
    parent = spans.named("second").parent
    assert parent is not None
    assert parent.span_id == first.get_span_context().span_id


def test_without_an_sdk_a_trace_is_handed_on_and_nothing_recorded() -> None:
    assert not traces.active()
    with traces.span("x", traces.context_of(PARENT)) as span:
        assert traces.current() == PARENT
        assert not span.is_recording()
    with traces.span("x", traces.context_of(None)):
        assert traces.current() is None


@pytest.mark.parametrize("said", [None, "", "x", PARENT[:-1], PARENT.replace("-b7", "-zz")])
def test_what_is_no_traceparent_begins_a_new_trace(said: str | None) -> None:
    with recording() as spans, traces.span("outer"):
        with traces.span("inner", traces.context_of(said)):
            pass
        assert spans.named("inner").parent is None


def test_a_request_goes_on_with_its_clients_trace_unless_the_host_opened_a_span() -> None:
    with recording() as spans:
        with traces.span("far", traces.received({"traceparent": PARENT})):
            pass
        with traces.span("host"), traces.span("near", traces.received({"traceparent": PARENT})):
            pass
    assert trace_id(spans.named("far")) == PARENT[3:35]
    assert trace_id(spans.named("near")) == trace_id(spans.named("host")) != PARENT[3:35]


def test_what_was_raised_is_named_by_its_class_alone() -> None:
    with recording() as spans, pytest.raises(ValueError, match="hush"), traces.span("x"):
        raise ValueError("hush: the input")
    span = spans.named("x")
    assert span.status.description == "ValueError"
    assert "hush" not in span.to_json()


def test_a_past_span_has_its_times_its_trace_and_its_cause() -> None:
    with recording() as spans:
        traces.past("applied", PARENT, began=10, ended=30, cause=PARENT, job_id="job_1")
    span = spans.named("applied")
    assert (span.start_time, span.end_time, span.attributes) == (10, 30, {"job.id": "job_1"})
    assert trace_id(span) == PARENT[3:35]
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [PARENT[3:35]]


def test_what_is_started_within_a_trace_belongs_to_it() -> None:
    with traces.within(PARENT):
        assert traces.current() == PARENT
        with traces.within(None):
            assert traces.current() == PARENT
    assert traces.current() is None
    assert trace.get_current_span() is trace.INVALID_SPAN


# -- log lines ---------------------------------------------------------------------------------


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY}
    stream = io.StringIO()
    logs.configure("INFO", stream=stream, form="json")
    yield stream
    structlog.configure(**config)
    root.handlers[:] = before
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def test_a_line_is_one_object_with_its_time_in_utc(out: io.StringIO) -> None:
    structlog.get_logger("shop.main").warning("Odd\nthing", job_id="job_1", seconds=1.5, none=None)
    logging.getLogger("shop.lib").info("sold %d", 2)
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    at = datetime.fromisoformat(first.pop("timestamp"))
    assert at.utcoffset() == timedelta(0)
    assert first == {
        "level": "warning", "event": "Odd\nthing", "logger": "shop.main", "job_id": "job_1",
        "seconds": 1.5,
    }  # fmt: skip
    assert (second["event"], second["logger"]) == ("sold 2", "shop.lib")


def test_whoever_logs_about_a_job_names_it(out: io.StringIO) -> None:
    with bound_contextvars(job_id="job_1", attempt=2):
        structlog.get_logger("ours").info("one")
        logging.getLogger("theirs").info("two")
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(s["event"], s["job_id"], s["attempt"]) for s in said] == [
        ("one", "job_1", 2), ("two", "job_1", 2),
    ]  # fmt: skip


def test_a_line_within_a_span_names_its_trace(out: io.StringIO) -> None:
    with traces.within(PARENT):
        structlog.get_logger("x").info("inside")
    structlog.get_logger("x").info("outside")
    inside, outside = (json.loads(line) for line in out.getvalue().splitlines())
    assert inside["trace_id"] == PARENT[3:35]
    assert "trace_id" not in outside


def test_what_is_no_json_and_what_is_secret_break_no_line(out: io.StringIO) -> None:
    log = structlog.get_logger("x")
    log.info("Said", odd=object, text="\ud800", number=10**30, token="hush", input="hush")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("Broke", long="x" * 10_000)
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first["event"] == "Said"
    assert "hush" not in out.getvalue()
    assert "ValueError: why" in second["exception"]
    assert len(second["long"]) < 1000
