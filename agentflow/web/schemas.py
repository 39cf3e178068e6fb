"""The shapes of the API, as pydantic models: they check requests and write the OpenAPI page."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from agentflow.core.job import Status

T = TypeVar("T")


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.I | re.A)


def _instant(value: Any) -> datetime:
    """Pydantic would also take a number, in seconds or milliseconds as it thinks fit."""
    try:
        if isinstance(value, str) and _RFC3339.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise PydanticCustomError("instant", "An instant with its offset, like 2026-11-23T10:00:00Z")


def _deadline(value: Any) -> float | datetime:
    if isinstance(value, str):
        return _instant(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e12:
        return float(value)
    raise PydanticCustomError("deadline", "Seconds above 0, or an instant with its offset")


_INSTANT = {"type": "string", "format": "date-time"}
_SECONDS = {"type": "number", "exclusiveMinimum": 0}

Instant = Annotated[datetime, PlainValidator(_instant), WithJsonSchema(_INSTANT)]
Deadline = Annotated[
    float | datetime, PlainValidator(_deadline), WithJsonSchema({"anyOf": [_SECONDS, _INSTANT]})
]
Word = Annotated[str, Field(max_length=255)]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewJobBody(Shape):
    """Durations are in seconds, instants RFC 3339 with an offset."""

    model_config = ConfigDict(strict=True)

    task: str = Field(max_length=128, examples=["replicate.predict"])
    input: JsonValue = None
    entity: str | None = Field(None, examples=["shot:42"])
    priority: int = Field(0, ge=-100, le=100)
    delay: float | None = Field(None, ge=0, allow_inf_nan=False)
    run_at: Instant | None = None
    deadline: Deadline | None = Field(None, description="Seconds from the start, or an instant.")
    max_attempts: int | None = Field(None, ge=1, le=100)
    tags: list[str] = Field(default_factory=list, max_length=20)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    callback_url: str | None = Field(
        None, max_length=2048, description="Told by a signed POST when the job has ended."
    )


class BatchJob(NewJobBody):
    """A job as `POST /v1/jobs` takes it."""

    idempotency_key: str | None = Field(
        None, description="The same key and the same job give the same job."
    )


class Batch(Shape, Generic[T]):
    """Up to 1,000 jobs, in 8 MiB at most."""

    model_config = ConfigDict(strict=True)

    jobs: list[T] = Field(min_length=1, max_length=1000)


class Progress(BaseModel):
    fraction: float | None
    message: str | None


class Artifact(BaseModel):
    id: str | None
    name: str | None
    media_type: str | None
    status: Literal["pending", "stored", "lost"]
    sha256: str | None
    size: int | None
    url: str | None
    note: str | None
    expires_at: datetime | None


class Result(BaseModel):
    output: Any
    text: str | None
    artifacts: list[Artifact]
    usage: dict[str, float]


class Error(BaseModel):
    kind: str
    message: str
    retryable: bool
    retry_after: float | None
    detail: dict[str, Any]


class Cost(BaseModel):
    amount: str
    currency: str
    source: str


class Job(BaseModel):
    id: str
    task: str
    status: Status
    reason: str
    phase: str | None
    attempt: int
    max_attempts: int
    progress: Progress
    entity: str | None
    tenant: str
    external_id: str | None
    result: Result | None
    error: Error | None
    cost: Cost | None
    tags: list[str]
    metadata: dict[str, Any]
    priority: int
    retry_of: str | None
    wake_at: datetime | None
    deadline: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int
    urls: dict[str, str]


class Entry(BaseModel):
    """One decision of the machine on this job."""

    seq: int
    job_id: str
    event: str
    source: Literal["worker", "webhook", "poll", "api", "clock"]
    disposition: Literal["applied", "ignored"]
    reason: str
    status: Status
    said: dict[str, Any]
    progress: Progress | None
    told_at: datetime
    at: datetime


class Feed(BaseModel):
    """`next_cursor` goes on behind the last item, also where nothing is new."""

    items: list[Entry]
    next_cursor: str


class Delivery(BaseModel):
    id: str
    kind: str
    provider: str | None
    delivery_id: str | None
    type: str | None
    status: str
    reason: str | None
    error: str | None
    job_id: str | None
    received_at: datetime
    applied_at: datetime | None


class DeliveryWhole(Delivery):
    body: str
    headers: dict[str, str]


class HandlerRun(BaseModel):
    id: str
    handler: str
    kind: str
    job_id: str | None
    inbox_id: str | None
    status: Literal["pending", "parked", "done"]
    tries: int
    error: str | None
    created_at: datetime
    wake_at: datetime | None
    done_at: datetime | None


class Page(BaseModel, Generic[T]):
    """`next_cursor` is null on the last page."""

    items: list[T]
    next_cursor: str | None


class TaskInfo(BaseModel):
    name: str
    provider: str
    description: str
    kind: Literal["model"] | None = Field(description="What inputs and outputs agree on.")
    input_schema: dict[str, Any]
    policy: dict[str, Any]
    abilities: dict[str, bool]


class ProviderInfo(BaseModel):
    name: str
    description: str
    webhooks: Literal["per_request", "account", "none"]
    webhooks_ready: bool
    webhook_problem: str | None
    webhook_url: str | None
    tasks: list[str]


class Received(BaseModel):
    """`duplicate` means that this delivery was stored before."""

    id: str
    status: Literal["stored", "duplicate"]


class Commanded(BaseModel):
    """The command is stored; `status` says how far it is."""

    id: str
    status: str


class JobStub(BaseModel):
    id: str
    status: Status


class Refusal(BaseModel):
    """A problem of one item."""

    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


class BatchItem(BaseModel):
    """What became of the item at `index`; the other of `job` and `error` is null."""

    index: int
    status: Literal[201, 200, 409, 422, 503]
    job: JobStub | None
    error: Refusal | None


class BatchAnswer(BaseModel):
    """One item for each that was sent, in their order."""

    items: list[BatchItem]
    created: int
    repeated: int
    refused: int


class BulkFilter(Shape):
    """Jobs for which all that is given is true; something must be."""

    model_config = ConfigDict(strict=True)

    status: Status | None = None
    task: Word | None = None
    entity: Word | None = None
    tag: Word | None = None
    since: Instant | None = Field(None, description="Created then or later.")


class BulkBody(Shape):
    model_config = ConfigDict(strict=True)

    filter: BulkFilter
    dry_run: bool = Field(True, description="Only say which jobs it would be.")
    limit: int = Field(1000, ge=1, le=1000, description="Jobs of one request.")


class BulkAnswer(BaseModel):
    """`matched` counts up to `limit` + 1, and `more` says that there are so many. `ids` are the
    jobs it was done to, or would be; `done` is their number, and 0 in a dry run."""

    matched: int
    done: int
    ids: list[str]
    dry_run: bool
    more: bool


class Pause(BaseModel):
    target: str
    note: str | None
    created_at: datetime


class PauseBody(Shape):
    model_config = ConfigDict(strict=True)

    target: str = Field(
        max_length=128,
        description="A provider or a task.",
        examples=["replicate", "replicate.predict"],
    )
    note: str | None = Field(None, max_length=200, pattern=r"^[^\x00]*$", description="Why.")


class Health(BaseModel):
    status: Literal["ok", "unavailable"]
    missing: list[str] = Field(default_factory=list)
    oldest_due_seconds: float | None = None
    plugin_problems: dict[str, str] = Field(default_factory=dict)


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


Limit = Annotated[int, Field(ge=1, le=200)]


class JobsQuery(Shape):
    status: Status | None = None
    task: Word | None = None
    entity: Word | None = None
    tag: Word | None = None
    since: Instant | None = Field(None, description="Created then or later.")
    cursor: str | None = Field(None, pattern=r"^job_[0-9a-f]{32}$")
    limit: Limit = 50


class JobQuery(Shape):
    wait: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Seconds to wait for a final status."
    )


class EntriesQuery(Shape):
    after: int = Field(
        -1, ge=-1, lt=2**31, description="Entries with a higher `seq` only; takes `next_cursor`."
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000
    deltas: bool = Field(True, description="Whether a live stream tells what calls say meanwhile.")


class FeedQuery(Shape):
    after: str | None = Field(
        None,
        max_length=40,
        description="Entries after this `next_cursor` only; `now` gives none, but a cursor.",
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000


class DeliveriesQuery(Shape):
    status: Literal["received", "applied", "parked", "ignored", "failed", "expired"] | None = None
    provider: Word | None = None
    cursor: str | None = Field(None, pattern=r"^dlv_[0-9a-f]{32}$")
    limit: Limit = 50


class RunsQuery(Shape):
    status: Literal["pending", "parked", "done"] | None = None
    cursor: str | None = Field(None, pattern=r"^run_[0-9a-f]{32}$")
    limit: Limit = 50
