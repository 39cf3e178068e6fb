"""The numbers of one process, for Prometheus.

Each process has a registry of its own, so that several applications in one interpreter do not mix.
Labels are names of tasks, providers, routes and statuses, never an id or a tenant: their number is
bounded by what is installed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from agentflow.types import VERSION

M = TypeVar("M", bound=MetricWrapperBase)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

OTHER = "other"
"""The label of what is no name of ours: a task whose plugin is gone, a method nobody knows."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SIZES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400)


class Labeled(dict[tuple[str, ...], M], Generic[M]):
    """A metric by its label values, in the order they were declared in.

    A dict, because the library takes a lock for each look-up of its own.
    """

    def __init__(self, metric: M, labels: Sequence[str]) -> None:
        super().__init__()
        self._metric = metric
        if not labels:  # it is its own only child
            self[()] = metric

    def __missing__(self, values: tuple[str, ...]) -> M:
        child = self[values] = self._metric.labels(*values)
        return child

    def reset(self, current: Mapping[tuple[str, ...], float]) -> None:
        """Of a gauge: these are all its values; what it had besides is gone."""
        assert isinstance(self._metric, Gauge), "only a gauge forgets"
        self._metric.clear()
        self.clear()
        for values, value in current.items():
            self._metric.labels(*values).set(value)


class Metrics:
    """`tasks` and `providers` are the names that may be labels; others become `other`."""

    def __init__(self, tasks: Collection[str] = (), providers: Collection[str] = ()) -> None:
        self._tasks, self._providers = tasks, providers
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("agentflow_build", "What runs here.", registry=self.registry).info(
            {"version": VERSION, "python": platform.python_version()}
        )
        self._of_jobs()
        self._of_the_writer()
        self._of_the_edges()

    def _of_jobs(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.submitted = counter("jobs_submitted", "Jobs stored, by task.", "task")
        self.transitions = counter(
            "job_transitions",
            "Decisions applied to jobs, by what the job was then.",
            "task", "status", "reason",
        )  # fmt: skip
        self.claims = counter("claims", "Workers' requests for an attempt, by answer.", "answer")
        self.calls = histogram(
            "call_seconds", "Calls of tasks' functions.", _LONG, "task", "outcome"
        )
        self.permit_seconds = histogram(
            "permit_wait_seconds", "Until a call may be made, in the worker.", _LONG, "provider"
        )
        self.pauses = counter(
            "limit_pauses", "Times a provider asked for a rest by Retry-After.", "provider"
        )
        self.chores = histogram(
            "chore_seconds", "Asking, canceling and collecting.", _LONG, "chore", "outcome"
        )
        self.artifacts = counter(
            "artifacts", "Files of results that were settled: stored or lost.", "task", "status"
        )
        self.artifact_bytes = counter("artifact_bytes", "Bytes taken into custody.", "task")
        self.loop_held = counter(
            "loop_held", "Times an async function held the event loop for seconds.", "task"
        )
        self.handler_runs = histogram(
            "handler_seconds", "Runs of the application's handlers.", _SHORT, "handler", "outcome"
        )

    def _of_the_writer(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.turn_seconds = histogram("writer_turn_seconds", "Turns of the writer.", _SHORT)[()]
        self.turn_size = histogram("writer_turn_size", "What a turn was about.", _SIZES)[()]
        self.heard = counter("events_heard", "What workers said to the writer, by kind.", "kind")
        self.inbox = counter(
            "inbox_applied", "Inbox rows read, by what became of them.", "kind", "status"
        )
        self.alarms = counter("alarms_fired", "Jobs whose alarm went off.")[()]
        self.crowded = counter("writer_crowded", "Turns that left rows to another writer.")[()]
        self.broken = counter("writer_broken_batches", "Batches tried again part by part.")[()]

    def _of_the_edges(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.deliveries = counter(
            "webhook_deliveries", "Webhooks received, by what was answered.", "provider", "result"
        )
        self.requests = counter(
            "http_requests", "Requests, by route template.", "route", "method", "status"
        )
        self.request_seconds = histogram(
            "http_request_seconds", "Until the answer begins.", _SHORT, "route", "method"
        )
        self.redis_outages = counter("redis_outages", "Times Redis went out of reach.")[()]

    def handled(self, handler: str, done: bool, seconds: float) -> None:
        """A handler of the application ran; `done`: without raising."""
        self.handler_runs[handler, "done" if done else "failed"].observe(seconds)

    # -- labels ----------------------------------------------------------------------------------

    def task(self, name: str) -> str:
        return name if name in self._tasks else OTHER

    def provider(self, name: str) -> str:
        return name if name in self._providers else OTHER

    def method(self, name: str) -> str:
        return name if name in _METHODS else OTHER

    # -- out -------------------------------------------------------------------------------------

    def text(self) -> bytes:
        """All of it in the format of `CONTENT_TYPE`."""
        return generate_latest(_Plain(self.registry.collect))

    def _counter(self, name: str, said: str, *labels: str) -> Labeled[Counter]:
        return Labeled(Counter(f"agentflow_{name}", said, labels, registry=self.registry), labels)

    def gauge(self, name: str, said: str, *labels: str) -> Labeled[Gauge]:
        """A new one, for those who measure a state when somebody looks."""
        return Labeled(Gauge(f"agentflow_{name}", said, labels, registry=self.registry), labels)

    def _histogram(
        self, name: str, said: str, buckets: Iterable[float], *labels: str
    ) -> Labeled[Histogram]:
        metric = Histogram(
            f"agentflow_{name}", said, labels, registry=self.registry, buckets=tuple(buckets)
        )
        return Labeled(metric, labels)


class _Plain:
    """Without the instants at which each child was made, which nobody graphs and which double the
    number of series."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        for family in self._collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
