"""Each route of the API as the request it takes: pure, so that both clients send the same."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NotRequired, Required, TypedDict
from urllib.parse import quote

BATCH, BATCH_BYTES = 1000, 7 << 20
"""Jobs of one request, and about how large they are together: somewhat less than servers take."""


@dataclass(frozen=True, slots=True)
class Request:
    """`body` is JSON. `repeatable`: a second arrival changes nothing. `wait` is how many seconds
    the server may take on purpose. `passing` is a status that is good besides 2xx."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    wait: float = 0.0
    passing: int = 200


class JobOptions(TypedDict, total=False):
    """`delay` and a numeric `deadline` are in seconds; datetimes are aware."""

    idempotency_key: str | None
    entity: str | None
    priority: int
    delay: float | None
    run_at: datetime | None
    deadline: float | datetime | None
    max_attempts: int | None
    tags: Sequence[str]
    metadata: Mapping[str, Any] | None
    callback_url: str | None


class JobRequest(JobOptions):
    """One job of many: what `submit` takes."""

    task: Required[str]
    input: NotRequired[Any]


class JobFilter(TypedDict, total=False):
    """Jobs for which all of it is true. `since` is an aware datetime."""

    status: str | None
    task: str | None
    entity: str | None
    tag: str | None
    since: datetime | None


class UsageFilter(TypedDict, total=False):
    """Calls that ended from `since` on and before `until`, aware datetimes. `tenant` is another
    one, or `*`, for operators."""

    since: datetime | None
    until: datetime | None
    task: str | None
    model: str | None
    tag: str | None
    tenant: str | None
    group_by: str | None


class BudgetOptions(TypedDict, total=False):
    """`per_call` is what to set aside for a call of which no price says what it costs at most;
    `period` is `day`, `month` or `total`."""

    per_call: Required[str]
    currency: str
    period: str
    tenant: str
    tag: str | None
    note: str | None


def submit(job: JobRequest) -> Request:
    body = _job(job)
    return _once("/v1/jobs", body.pop("idempotency_key"), body)


def batches(jobs: Iterable[JobRequest]) -> Iterator[Request]:
    """As many requests as it takes; each job has a key, so they may be sent again."""
    some: list[bytes] = []
    size = 0
    for each in jobs:
        written = _json(_job(each))
        if some and (len(some) == BATCH or size + len(written) > BATCH_BYTES):
            yield _batch(some)
            some, size = [], 0
        some.append(written)
        size += len(written) + 1
    if some:
        yield _batch(some)


def job(id: str, wait: float = 0.0) -> Request:
    """`Prefer` takes whole seconds only (RFC 7240); less than one goes as a parameter."""
    headers = {"Prefer": f"wait={int(wait)}"} if wait >= 1 else {}
    params = {"wait": wait} if 0 < wait < 1 else {}
    return Request("GET", _place("/v1/jobs", id), params, headers=headers, wait=wait)


def jobs(page: int, wanted: JobFilter) -> Request:
    return Request("GET", "/v1/jobs", {**_filter(wanted), "limit": page})


def history(id: str) -> Request:
    return Request("GET", _place("/v1/jobs", id, "/events"))


def events(id: str, *, deltas: bool) -> Request:
    return _live(_place("/v1/jobs", id, "/events"), {} if deltas else {"deltas": "false"})


def cancel(id: str) -> Request:
    return Request("POST", _place("/v1/jobs", id, "/cancel"))


def retry(id: str, key: str | None) -> Request:
    return _once(_place("/v1/jobs", id, "/retry"), key)


def cancel_many(wanted: JobFilter, dry_run: bool, limit: int) -> Request:
    return _post("/v1/jobs/cancel", _bulk(wanted, dry_run, limit))


def retry_many(wanted: JobFilter, dry_run: bool, limit: int) -> Request:
    """A job is retried once by this, but a new one that fails at once fits the filter too."""
    body = _bulk(wanted, dry_run, limit)
    return replace(_post("/v1/jobs/retry", body), repeatable=dry_run)


def feed(after: str | None) -> Request:
    return _live("/v1/events", _given({"after": after}))


def feed_page(after: str | None, limit: int) -> Request:
    return Request("GET", "/v1/events", _given({"after": after, "limit": limit}))


def pauses() -> Request:
    return Request("GET", "/v1/pauses")


def pause(target: str, note: str | None) -> Request:
    return _post("/v1/pauses", _given({"target": target, "note": note}))


def resume(target: str) -> Request:
    return Request("DELETE", _place("/v1/pauses", target))


def usage(wanted: UsageFilter) -> Request:
    _refuse_unknown(wanted, UsageFilter)
    return Request("GET", "/v1/usage", _given(wanted))


def budgets() -> Request:
    return Request("GET", "/v1/budgets")


def set_budget(cap: str, said: BudgetOptions) -> Request:
    _refuse_unknown(said, BudgetOptions)
    return _post("/v1/budgets", {"cap": cap, **_given(said)})


def remove_budget(id: str) -> Request:
    return Request("DELETE", _place("/v1/budgets", id))


def deliveries(page: int, **wanted: str | None) -> Request:
    return Request("GET", "/v1/deliveries", {**_given(wanted), "limit": page})


def delivery(id: str) -> Request:
    return Request("GET", _place("/v1/deliveries", id))


def replay(id: str) -> Request:
    return Request("POST", _place("/v1/deliveries", id, "/replay"), repeatable=False)


def handler_runs(page: int, status: str | None) -> Request:
    return Request("GET", "/v1/handler-runs", _given({"status": status, "limit": page}))


def retry_handler(id: str) -> Request:
    return Request("POST", _place("/v1/handler-runs", id, "/retry"), repeatable=False)


def tasks() -> Request:
    return Request("GET", "/v1/tasks")


def providers() -> Request:
    return Request("GET", "/v1/providers")


def health() -> Request:
    """Good and bad health are both an answer."""
    return Request("GET", "/readyz", passing=503, repeatable=False)


def artifact(id: str) -> Request:
    return Request("GET", _place("/v1/artifacts", id))


def _once(path: str, key: str | None, body: Any = None) -> Request:
    request = Request("POST", path) if body is None else _post(path, body)
    once = {"Idempotency-Key": key or uuid.uuid4().hex}
    return replace(request, headers={**request.headers, **once})


def _batch(jobs: Sequence[bytes]) -> Request:
    return _post("/v1/jobs/batch", b'{"jobs":[' + b",".join(jobs) + b"]}")


def _post(path: str, said: Any) -> Request:
    """With a body of JSON; bytes are JSON already."""
    body = said if isinstance(said, bytes) else _json(said)
    return Request("POST", path, body=body, headers={"Content-Type": "application/json"})


def _json(said: Any) -> bytes:
    """Raises `ValueError` and `TypeError` for what JSON cannot say."""
    written = json.dumps(said, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return written.encode()


def _job(said: JobRequest) -> dict[str, Any]:
    """Raises `TypeError` for what no job has."""
    _refuse_unknown(said, JobRequest)
    return {
        "input": None,
        **_given(said),
        "idempotency_key": said.get("idempotency_key") or uuid.uuid4().hex,
    }


def _bulk(wanted: JobFilter, dry_run: bool, limit: int) -> dict[str, Any]:
    return {"filter": _filter(wanted), "dry_run": dry_run, "limit": limit}


def _filter(wanted: JobFilter) -> dict[str, Any]:
    """Raises `TypeError` for a name there is not: with it left out, more jobs would fit."""
    _refuse_unknown(wanted, JobFilter)
    return _given(wanted)


def _refuse_unknown(said: Mapping[str, Any], shape: type) -> None:
    if unknown := said.keys() - shape.__annotations__.keys():
        raise TypeError(f"unknown argument {', '.join(sorted(unknown))}")


def _given(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was said, ready for JSON; None stands for nothing said."""
    return {k: _written(v) for k, v in said.items() if v is not None}


def _written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _live(path: str, params: Mapping[str, Any]) -> Request:
    return Request("GET", path, params, headers={"Accept": "text/event-stream"})


def _place(path: str, id: str, action: str = "") -> str:
    """The path of one thing of a list; its id may be anything somebody typed."""
    return f"{path}/{quote(id, safe='')}{action}"
