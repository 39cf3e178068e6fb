"""Rows held against what their history folds to: who changed one of them was not the writer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agentflow.audit.finding import Finding, Kind
from agentflow.audit.replay import TOLD, Replay
from agentflow.store.rows import Row, instant, loads
from agentflow.types import JsonObject

_JSON = frozenset({"policy", "abilities", "progress", "result", "error"})
_SECRET = frozenset({"token", "nonce", "external_id"}) | _JSON
"""Never shown: secrets, and what is long."""

_ATTEMPT = ("token", "nonce", "worker", "external_id", "started_at", "account")


def written_findings(job: Row, attempts: Sequence[Row], replay: Replay) -> Iterator[Finding]:
    told = replay.row
    for name in sorted(TOLD - {"attempts"}):
        if name in told and _differ(name, job[name], told[name]):
            yield Finding(Kind.ROW_CHANGED, job["id"], None, _said(name, job[name], told[name]))
    provider = job["task"].split(".", 1)[0]
    if job["queue"] != provider:
        yield Finding(Kind.ROW_CHANGED, job["id"], None, _said("queue", job["queue"], provider))
    yield from _attempts(job, attempts, told["attempts"], provider)
    if replay.ended:
        if (job["checks"], job["check_at"]) != (0, None):
            yield Finding(Kind.TIMERS, job["id"], None, "an ended job is to be looked at")
    elif job["checks"] < replay.checks:
        said = f"{job['checks']} checks after {replay.checks}"
        yield Finding(Kind.TIMERS, job["id"], None, said)


def _attempts(
    job: Row, attempts: Sequence[Row], told: JsonObject, provider: str
) -> Iterator[Finding]:
    numbers, expected = [row["number"] for row in attempts], sorted(map(int, told))
    if numbers != expected or expected != list(range(1, len(expected) + 1)):
        said = f"{numbers}, and {expected} in the history"
        yield Finding(Kind.ATTEMPTS, job["id"], None, said)
    for row in attempts:
        history = told.get(str(row["number"]), {})
        for name in _ATTEMPT:
            if name in history and _differ(name, row[name], history[name]):
                said = f"attempt {row['number']}: {_said(name, row[name], history[name])}"
                yield Finding(Kind.ATTEMPT_CHANGED, job["id"], None, said)
        if row["provider"] != provider:
            said = f"attempt {row['number']}: {_said('provider', row['provider'], provider)}"
            yield Finding(Kind.ATTEMPT_CHANGED, job["id"], None, said)


def _differ(name: str, row: Any, told: Any) -> bool:
    if name in _JSON:
        return bool(loads(row) != told)
    if name == "deadline" or name.endswith("_at"):
        return bool(instant(row) != instant(told))
    return bool(row != told)


def _said(name: str, row: Any, told: Any) -> str:
    if name in _SECRET:
        return f"{name} is not what its history says"
    return f"{name} is {_shown(row)}, its history says {_shown(told)}"


def _shown(value: Any) -> str:
    return "empty" if value is None else str(value)[:60]
