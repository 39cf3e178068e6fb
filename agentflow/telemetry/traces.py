"""Spans that follow one job through rows and messages, tied by its W3C `traceparent`.

Only OpenTelemetry's API is used: a process without an SDK records nothing, and hands on what it
was given. No input, key or token goes into an attribute, nor the text of an exception, which may
quote one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentflow.types import VERSION

__all__ = ["Span", "SpanKind", "active", "current", "past", "received", "span", "within"]

HEADER = "traceparent"

_PROPAGATOR = TraceContextTextMapPropagator()


def current() -> str | None:
    """The `traceparent` of the span this code runs in; None outside of any."""
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags & 1:02x}"


def active() -> bool:
    """Whether the process has an SDK, so that a span is worth a look-up."""
    idle = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
    return not isinstance(trace.get_tracer_provider(), idle)


def received(headers: Mapping[str, str]) -> Context | None:
    """The parent a request names; None if the host application has opened a span for it."""
    if trace.get_current_span().get_span_context().is_valid:
        return None
    return _PROPAGATOR.extract(headers, Context())


def context_of(traceparent: str | None) -> Context:
    """As the parent of a span; what is missing or malformed is the parent of a new trace."""
    return _PROPAGATOR.extract({HEADER: traceparent}, Context()) if traceparent else Context()


@contextmanager
def span(
    name: str,
    parent: Context | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    **attributes: str | int,
) -> Iterator[Span]:
    """A span around the block, in which it is the current one. None: it belongs to that which is
    current now. What the block raises is named by its class alone."""
    with _tracer().start_as_current_span(
        name,
        parent,
        kind,
        _dotted(attributes),
        record_exception=False,
        set_status_on_exception=False,
    ) as opened:
        try:
            yield opened
        except BaseException as error:
            opened.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


@contextmanager
def within(traceparent: str | None) -> Iterator[None]:
    """What the block starts belongs to this trace, without a span for the block."""
    if traceparent is None:
        yield
        return
    token = contexts.attach(trace.set_span_in_context(_remote(traceparent)))
    try:
        yield
    finally:
        contexts.detach(token)


def past(
    name: str,
    traceparent: str,
    *,
    began: int,
    ended: int,
    cause: str | None = None,
    **attributes: str | int,
) -> None:
    """A span for what was done from `began` to `ended`, nanoseconds of `time.time_ns`, and is now
    known to be true. `cause` is the `traceparent` of what led to it in another trace."""
    links = [Link(_remote(cause).get_span_context())] if cause else None
    _tracer().start_span(
        name,
        context_of(traceparent),
        attributes=_dotted(attributes),
        links=links,
        start_time=began,
    ).end(ended)


def _remote(traceparent: str) -> Span:
    return trace.get_current_span(context_of(traceparent))


def _dotted(attributes: Mapping[str, str | int]) -> dict[str, str | int]:
    """`job_id` is written `job.id`."""
    return {name.replace("_", "."): value for name, value in attributes.items()}


def _tracer() -> Tracer:
    return _tracer_of(trace.get_tracer_provider())


@lru_cache(maxsize=4)
def _tracer_of(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("agentflow", VERSION)
