"""From what a caller asks for to a job that can be stored."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from pydantic import ValidationError

from agentflow.core.cleaning import written
from agentflow.core.job import Attempt, Job, Phase, Status
from agentflow.core.providers import Task
from agentflow.core.transition import RANDOM_BYTES, token_from
from agentflow.errors import InvalidInput
from agentflow.types import DEFAULT_TENANT, JobId, Json, new_job_id

ENTITY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}:[^\s\x00-\x1f\ud800-\udfff]{1,180}")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/=@-]{0,63}")
KEY = re.compile(r"[\x21-\x7e]{1,255}")

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON text. A backslash that is itself escaped begins no escape."""

CALLBACK_TASK = "agentflow.callback"
"""What tells a job's `callback_url` that it ended."""

CALLBACK_URL = re.compile(r"https?://[^\s@/?#]+([/?][\x21\x24-\x7e]*)?", re.IGNORECASE)
"""With a host, without credentials and fragment, in ASCII."""

MAX_INPUT = 262_144
MAX_METADATA = 16_384
MAX_TAGS = 20
MAX_DELAY = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One request to run one task.

    `callback_url` is told by a signed POST when the job has ended.
    `entity` is the caller's own thing, `type:id`. `delay` and a numeric `deadline` are in seconds
    (the deadline counts from the start time); `run_at` and `deadline` may be aware datetimes.
    """

    task: str
    input: Json = None
    entity: str | None = field(default=None, kw_only=True)
    priority: int = field(default=0, kw_only=True)
    delay: float | None = field(default=None, kw_only=True)
    run_at: datetime | None = field(default=None, kw_only=True)
    deadline: float | datetime | None = field(default=None, kw_only=True)
    max_attempts: int | None = field(default=None, kw_only=True)
    tags: Sequence[str] = field(default=(), kw_only=True)
    metadata: Mapping[str, Json] = field(default_factory=dict, kw_only=True)
    idempotency_key: str | None = field(default=None, kw_only=True)
    callback_url: str | None = field(default=None, kw_only=True)
    retry_of: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job and what is stored beside it; `input` and `metadata` are JSON text."""

    job: Job
    input: str
    entity: str | None
    priority: int
    tags: tuple[str, ...]
    metadata: str
    idempotency_key: str | None
    request_hash: str | None
    retry_of: str | None
    callback_url: str | None = None
    trace: str | None = None
    """The W3C `traceparent` of the request, where it is traced."""


def prepare(
    spec: JobSpec,
    task: Task[Any],
    *,
    now: datetime,
    tenant: str = DEFAULT_TENANT,
    webhooks: bool = False,
    max_input: int = MAX_INPUT,
) -> NewJob:
    """Check everything and make the job. Raises `InvalidInput` whose `detail` lists each fault."""
    faults = [*_faults(spec, now), *_input_faults(spec, task, max_input)]
    if faults:
        said = "; ".join(f"{fault['loc']}: {fault['msg']}" for fault in faults[:5])
        raise InvalidInput(said, detail={"errors": faults})
    start = _start(spec, now)
    waits = start > now
    job = Job(
        id=new_job_id(),
        tenant=tenant,
        task=task.name,
        status=Status.SCHEDULED if waits else Status.QUEUED,
        created_at=now,
        deadline=_deadline(spec, start, task.policy.deadline),
        check_at=start if waits else now,
        attempts=(Attempt(1, token_from(secrets.token_bytes(RANDOM_BYTES))),),
        max_attempts=spec.max_attempts or task.policy.max_attempts,
        policy=task.policy,
        abilities=task.abilities(webhooks=webhooks),
    )
    return _beside(spec, job)


def prepare_adopted(
    spec: JobSpec,
    task: Task[Any],
    external_id: str,
    *,
    now: datetime,
    tenant: str,
    webhooks: bool,
    max_input: int = 262_144,
) -> NewJob:
    """A job for a call made elsewhere: it waits for the provider from the start. Its input is what
    that call was made with; it may stay out where the task does not ask for it later.

    Raises `InvalidInput` as `prepare` does.
    """
    faults = _faults(spec, now)
    if task.asks_input:
        faults += _input_faults(spec, task, max_input)
    if not 1 <= len(external_id) <= 255:
        faults.append(_fault("external_id", "1 to 255 characters"))
    if faults:
        raise InvalidInput(f"{faults[0]['loc']}: {faults[0]['msg']}", detail={"errors": faults})
    token = token_from(secrets.token_bytes(RANDOM_BYTES))
    job = Job(
        id=new_job_id(),
        tenant=tenant,
        task=task.name,
        status=Status.WAITING,
        reason="adopted",
        phase=Phase.PROVIDER,
        created_at=now,
        started_at=now,
        deadline=_deadline(spec, now, task.policy.deadline),
        check_at=now,
        attempts=(Attempt(1, token, external_id=external_id, started_at=now),),
        max_attempts=1,
        policy=task.policy,
        abilities=task.abilities(webhooks=webhooks),
    )
    return _beside(spec, job, external_id)


def request_hash(spec: JobSpec, external_id: str | None = None) -> str:
    """What makes two submits (or adoptions) under one idempotency key the same."""
    said = [
        spec.task, spec.input, spec.entity, spec.priority, spec.delay, spec.run_at, spec.deadline,
        spec.max_attempts, list(spec.tags), dict(spec.metadata), spec.retry_of, external_id,
    ]  # fmt: skip
    if spec.callback_url is not None:  # said only where there is one: requests of before are known
        said.append(spec.callback_url)
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _beside(spec: JobSpec, job: Job, external_id: str | None = None) -> NewJob:
    return NewJob(
        job=job,
        input=orjson.dumps(spec.input).decode(),
        entity=spec.entity,
        priority=spec.priority,
        tags=tuple(dict.fromkeys(spec.tags)),
        metadata=orjson.dumps(dict(spec.metadata)).decode(),
        idempotency_key=spec.idempotency_key,
        request_hash=request_hash(spec, external_id) if spec.idempotency_key else None,
        retry_of=JobId(spec.retry_of) if spec.retry_of else None,
        callback_url=spec.callback_url,
    )


def _start(spec: JobSpec, now: datetime) -> datetime:
    """When the job may begin, in UTC: SQLite compares instants as text."""
    asked = spec.run_at or now + timedelta(seconds=spec.delay or 0.0)
    return max(asked, now).astimezone(UTC)


def _deadline(spec: JobSpec, start: datetime, default: float) -> datetime:
    if isinstance(spec.deadline, datetime):
        return spec.deadline.astimezone(UTC)
    return start + timedelta(seconds=default if spec.deadline is None else spec.deadline)


def _fault(loc: str, msg: str) -> dict[str, str]:
    return {"loc": loc, "msg": msg}


def _faults(spec: JobSpec, now: datetime) -> list[dict[str, str]]:
    """What is wrong with everything but the input."""
    checks: list[tuple[bool, str, str]] = [
        (spec.entity is None or ENTITY.fullmatch(spec.entity) is not None, "entity", "type:id"),
        (-100 <= spec.priority <= 100, "priority", "-100 to 100"),
        (spec.delay is None or 0 <= spec.delay <= MAX_DELAY, "delay", "0 seconds to a year"),
        (spec.delay is None or spec.run_at is None, "run_at", "not together with delay"),
        (_aware(spec.run_at), "run_at", "an instant with its offset, within a year"),
        (_reachable(spec, now), "deadline", "after the start, within a year"),
        (spec.max_attempts is None or 1 <= spec.max_attempts <= 100, "max_attempts", "1 to 100"),
        (_reachable_url(spec.callback_url), "callback_url", "an http or https URL, to 2048"),
        (len(spec.tags) <= MAX_TAGS, "tags", f"at most {MAX_TAGS}"),
        (all(TAG.fullmatch(t) for t in spec.tags), "tags", "letters, digits and _.:/=@-, to 64"),
        (
            spec.idempotency_key is None or KEY.fullmatch(spec.idempotency_key) is not None,
            "idempotency_key",
            "1 to 255 visible ASCII characters",
        ),
    ]
    faults = [_fault(loc, msg) for good, loc, msg in checks if not good]
    if spec.run_at is not None and _aware(spec.run_at) and (spec.run_at - now).days > 366:
        faults.append(_fault("run_at", "within a year"))
    return [*faults, *_json_faults("metadata", dict(spec.metadata), MAX_METADATA)]


def _reachable_url(url: str | None) -> bool:
    return url is None or (len(url) <= 2048 and CALLBACK_URL.fullmatch(url) is not None)


def _aware(value: datetime | None) -> bool:
    return value is None or value.tzinfo is not None


def _reachable(spec: JobSpec, now: datetime) -> bool:
    if isinstance(spec.deadline, datetime):
        if not _aware(spec.deadline):
            return False
        start = spec.run_at if spec.run_at is not None and _aware(spec.run_at) else now
        if spec.delay is not None and 0 <= spec.delay <= MAX_DELAY:
            start = now + timedelta(seconds=spec.delay)
        return timedelta() < spec.deadline - max(start, now) <= timedelta(seconds=MAX_DELAY)
    return spec.deadline is None or 0 < spec.deadline <= MAX_DELAY


def _input_faults(spec: JobSpec, task: Task[Any], max_input: int) -> list[dict[str, str]]:
    faults = _json_faults("input", spec.input, max_input)
    if faults:
        return faults
    try:
        task.validate(spec.input)
    except ValidationError as error:
        return [
            _fault(".".join(["input", *map(str, e["loc"])]), e["msg"])
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
    return []


def _json_faults(name: str, value: Json, limit: int) -> list[dict[str, str]]:
    try:
        json.dumps(value, allow_nan=False)
        text = written(value)
    except (TypeError, ValueError, RecursionError):
        said = "JSON: no lone surrogates, NaN, dates, bytes, huge integers or deep nesting"
        return [_fault(name, said)]
    if len(text) > limit:
        return [_fault(name, f"at most {limit} bytes as JSON; send large things by reference")]
    if _NUL.search(text):
        return [_fault(name, "no NUL characters: databases cannot store them")]
    return []
