"""Telling a job's `callback_url` that it ended: a job of its own, stored with that very end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import structlog

from agentflow.core.submission import CALLBACK_TASK, JobSpec, NewJob
from agentflow.errors import InvalidInput
from agentflow.store.intake import insert_new_jobs
from agentflow.store.queries import job_views
from agentflow.store.sql import Sql
from agentflow.types import JsonObject
from agentflow.writer.batch import Held
from agentflow.writer.tools import Prepare

log = structlog.get_logger(__name__)

MOST_BYTES = 200_000
"""Of an event as JSON. Parts of the result of a larger one stay here; GET has them."""

_OMITTED: Sequence[Sequence[tuple[str, Any]]] = (
    (("output", None), ("text", None)),
    (("artifacts", []), ("usage", {})),
)
"""What is left out of a result, and then besides, with what stands in its place."""


async def call_back(sql: Sql, ended: Sequence[Held], prepare: Prepare) -> list[NewJob]:
    """Store a callback for each of these jobs that asked for one and was written with its end in
    this transaction; return them."""
    urls = {h.job.id: h.beside.callback_url for h in ended if h.job.final and not h.before.final}
    wanted = {id: url for id, url in urls.items() if url is not None}
    if not wanted:
        return []
    new = []
    for view in await job_views(sql, wanted):
        input = {"url": wanted[view["id"]], "event": event_of(view)}
        spec = JobSpec(CALLBACK_TASK, input, entity=f"job:{view['id']}")
        try:
            new.append(prepare(spec, view["tenant"]))
        except InvalidInput as refused:  # the task is not set up any more
            log.error("No callback", job_id=view["id"], why=refused.message)
    return await insert_new_jobs(sql, new)


def event_of(view: JsonObject) -> JsonObject:
    """What is posted: the end of a job, with the job as `GET /v1/jobs/{id}` shows it.

    `sequence` is the place of this event in the job's history, and with the job's id makes the
    event's id, which every attempt to deliver it repeats.
    """
    sequence = view["version"] - 1
    event = {
        "id": f"evt_{view['id'].removeprefix('job_')}_{sequence}",
        "type": f"job.{view['status']}",
        "timestamp": view["finished_at"],
        "sequence": sequence,
        "data": view,
    }
    for parts in _OMITTED:
        if view["result"] is None or len(orjson.dumps(event)) <= MOST_BYTES:
            break
        event["data"] = view = {**view, "result": {**view["result"], **dict(parts)}}
        omitted = event.setdefault("omitted", [])
        omitted += [f"data.result.{name}" for name, _ in parts]
    return event
