"""Between rows and what the machine knows: one place for columns, JSON and instants."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson
from pydantic import TypeAdapter

from agentflow.core.job import Attempt, Ending, Job, Phase, Status
from agentflow.core.policy import Abilities, Policy
from agentflow.core.results import ErrorInfo, Progress, Result
from agentflow.types import JobId, Token

Row = Mapping[str, Any]

JOB_COLUMNS = [
    "id",
    "tenant",
    "task",
    "status",
    "reason",
    "phase",
    "ending",
    "attempt",
    "max_attempts",
    "policy",
    "abilities",
    "progress",
    "result",
    "error",
    "created_at",
    "deadline",
    "started_at",
    "finished_at",
    "check_at",
    "checks",
    "version",
]

_JSON_FIELDS: dict[str, Any] = {"progress": Progress, "result": Result, "error": ErrorInfo}


def dumps(value: Any) -> str:
    """JSON text, deterministic: sets are sorted."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, (frozenset, set)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def loads(value: Any) -> Any:
    """The value of a JSON column, whether the driver parsed it already or not."""
    return orjson.loads(value) if isinstance(value, (str, bytes)) else value


def instant(value: Any) -> Any:
    """An aware datetime of an instant column, or None."""
    if value is None or isinstance(value, datetime):
        return value
    parsed = datetime.fromisoformat(value)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_JSON_FIELDS[name])


@cache
def _policy(text: str) -> Policy:
    """Policies repeat from job to job, so that parsing them once is enough."""
    return TypeAdapter(Policy).validate_json(text)


@cache
def _abilities(text: str) -> Abilities:
    return TypeAdapter(Abilities).validate_json(text)


def job_from(row: Row, attempts: list[Attempt]) -> Job:
    """The machine's view of a row of `agentflow_jobs` and its attempts in order."""
    parsed = {
        name: None if row[name] is None else _adapter(name).validate_python(loads(row[name]))
        for name in _JSON_FIELDS
    }
    return Job(
        id=JobId(row["id"]),
        tenant=row["tenant"],
        task=row["task"],
        status=Status(row["status"]),
        reason=row["reason"],
        phase=row["phase"] and Phase(row["phase"]),
        ending=row["ending"] and Ending(row["ending"]),
        attempt=row["attempt"],
        attempts=tuple(attempts),
        max_attempts=row["max_attempts"],
        policy=_policy(_text(row["policy"])),
        abilities=_abilities(_text(row["abilities"])),
        created_at=instant(row["created_at"]),
        deadline=instant(row["deadline"]),
        started_at=instant(row["started_at"]),
        finished_at=instant(row["finished_at"]),
        check_at=instant(row["check_at"]),
        checks=row["checks"],
        version=row["version"],
        **parsed,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def attempt_from(row: Row) -> Attempt:
    return Attempt(
        number=row["number"],
        token=Token(row["token"]),
        nonce=row["nonce"],
        worker=row["worker"],
        external_id=row["external_id"],
        started_at=instant(row["started_at"]),
        account=row.get("account"),  # histories of before 0004 do not tell
    )


def changed_columns(job: Job) -> dict[str, Any]:
    """The columns a decision may change, as the database takes them."""
    return {
        "status": job.status.value,
        "reason": job.reason,
        "phase": job.phase and job.phase.value,
        "ending": job.ending and job.ending.value,
        "attempt": job.attempt,
        "progress": None if job.progress is None else dumps(job.progress),
        "result": None if job.result is None else dumps(job.result),
        "error": None if job.error is None else dumps(job.error),
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "check_at": job.check_at,
        "checks": job.checks,
        "wake_at": job.wake_at,
        "version": job.version,
    }
