"""Many jobs in one request. What is wrong with one of them is said of that one alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentflow.core.submission import JobSpec, NewJob, request_hash
from agentflow.errors import AgentflowError, Conflict, InvalidInput, StoreUnavailable
from agentflow.store import queries
from agentflow.store.intake import Stored
from agentflow.store.rows import Row
from agentflow.types import JsonObject
from agentflow.web import schemas
from agentflow.web.context import Context, context, read, tenant
from agentflow.web.responses import JsonResponse
from agentflow.web.routes import Routes
from agentflow.web.specs import new_spec

batch = Routes("jobs")

MOST_BYTES = 8 << 20
"""Of the whole body."""

SLICE = 50
"""Items that are checked before other requests have their turn."""

_SAID: dict[type[AgentflowError], tuple[int, str]] = {
    Conflict: (409, "Conflict"),
    InvalidInput: (422, "The request does not fit"),
    StoreUnavailable: (503, "The store does not answer"),
}


@dataclass(slots=True)
class _Item:
    """One job of the batch, as far as it came."""

    spec: JobSpec | None = None
    new: NewJob | None = None
    end: Stored | BaseException | None = None

    @property
    def key(self) -> str | None:
        """What is to be looked up: it was not stored by this request, but perhaps before."""
        here = isinstance(self.end, Stored) and self.end.new
        return None if here or self.spec is None else self.spec.idempotency_key


@batch.add(
    "POST",
    "/v1/jobs/batch",
    body=schemas.Batch[schemas.BatchJob],
    answers={200: schemas.BatchAnswer},
    submits=True,
)
async def submit_batch(request: Request) -> Response:
    """Submit up to 1,000 jobs

    Each is answered as alone: 201 stored, 200 known under its `idempotency_key`, 409 or 422
    refused; and 503 if the store took others of the batch, but not this one.
    """
    ctx, who = context(request), tenant(request)
    items = []
    for index, said in enumerate(await _said(request)):
        if index % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        items.append(_prepared(ctx, who, said))
    await _store(ctx, items)
    known = await _known(who, items)
    answers = [{"index": i, **_answer(item, known)} for i, item in enumerate(items)]
    return JsonResponse({"items": answers, **_counts(answers)})


async def _said(request: Request) -> list[Any]:
    """The items, each of them anything so far. Raises `InvalidInput`, 400 for no JSON."""
    raw = await read(request, MOST_BYTES)
    try:
        orjson.loads(raw)  # stricter: NaN, infinity, lone surrogates
        whole = json.loads(raw)  # keeps integers whole that orjson would round
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is no JSON: {error}") from None
    try:
        return schemas.Batch[Any].model_validate(whole).jobs
    except ValidationError as error:
        raise _refusal(error, "body") from None


def _prepared(ctx: Context, who: str, said: Any) -> _Item:
    item = _Item()
    try:
        checked = schemas.BatchJob.model_validate(said)
        item.spec = new_spec(checked, checked.idempotency_key)
        item.new = ctx.prepare(item.spec, who)
    except ValidationError as error:
        item.end = _refusal(error, "job")
    except InvalidInput as refused:
        item.end = refused
    return item


async def _store(ctx: Context, items: Sequence[_Item]) -> None:
    """Store the good ones. Raises `StoreUnavailable` if none of them could be."""
    good = [(item, item.new) for item in items if item.new is not None]
    ends = await ctx.intake.add_all([new for _, new in good])
    if ends and all(isinstance(end, StoreUnavailable) for end in ends):
        raise StoreUnavailable
    for (item, _), end in zip(good, ends, strict=True):
        item.end = end


def _refusal(error: ValidationError, whole: str) -> InvalidInput:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    faults = [
        {
            "loc": ".".join(map(str, e["loc"]))[:200] or whole,
            "msg": "Input should be an object" if e["type"] == "model_type" else e["msg"],
        }
        for e in found[:20]
    ]
    told = "; ".join(f"{f['loc']}: {f['msg']}" for f in faults[:5])
    return InvalidInput(told, detail={"errors": faults})


async def _known(who: str, items: Sequence[_Item]) -> dict[str, Row]:
    """Jobs that are there under the keys of items which this request did not store."""
    keys = {item.key for item in items if item.key is not None}
    return await queries.jobs_of_keys(who, keys) if keys else {}


def _answer(item: _Item, known: Mapping[str, Row]) -> JsonObject:
    row = known.get(item.key or "")
    match item.end:
        case Stored(id, True) if item.new is not None:
            return _taken(201, id, item.new.job.status)
        case Stored(id):
            return _taken(200, id, row["status"] if row else "queued")
        case InvalidInput() if row and _same(item.spec, row):
            return _taken(200, row["id"], row["status"])
        case AgentflowError() as error if type(error) in _SAID:
            return _refused(error)
        case BaseException() as error:
            raise error
    raise AssertionError("every item was stored or refused")


def _same(spec: JobSpec | None, row: Row) -> bool:
    """Whether the job was made by this very request: what was good once (a deadline, say) is not
    refused later."""
    try:
        return spec is not None and row["request_hash"] == request_hash(spec)
    except TypeError:  # no JSON, so never stored
        return False


def _taken(status: int, id: str, now: str) -> JsonObject:
    return {"status": status, "job": {"id": id, "status": now}, "error": None}


def _refused(error: AgentflowError) -> JsonObject:
    status, title = _SAID[type(error)]
    more = error.detail if isinstance(error, InvalidInput) else {}
    told = {"title": title, "status": status, "detail": error.message, **more}
    return {"status": status, "job": None, "error": told}


def _counts(answers: Sequence[JsonObject]) -> JsonObject:
    statuses = [answer["status"] for answer in answers]
    created, repeated = statuses.count(201), statuses.count(200)
    refused = len(statuses) - created - repeated
    return {"created": created, "repeated": repeated, "refused": refused}
