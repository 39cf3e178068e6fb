"""The task about very many requests at once: `openai.batch`.

OpenAI takes a file of requests, works on them for up to a day at half the price, and writes files
of answers. Of the two calls that begin it only the second one starts what is paid for; its metadata
hold the attempt's token, so that a batch whose creation went unanswered is found again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from agentflow import (
    Accepted,
    CallTimeout,
    Canceled,
    Failed,
    InvalidInput,
    OutcomeUnknown,
    Policy,
    Progressed,
    ProviderFailure,
    QuotaExceeded,
    RateLimited,
    Result,
    ResultLost,
    Succeeded,
    Unavailable,
    Unstorable,
)
from agentflow_openai import responses
from agentflow_openai.batch_input import Batch, numbered, write
from agentflow_openai.batch_results import Results, wanted
from agentflow_openai.content import mark, numbers
from agentflow_openai.failures import is_gone
from agentflow_openai.provider import provider

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from agentflow import Artifact, Call

State: TypeAlias = Progressed | Succeeded | Failed | Canceled

POLICY = Policy(
    timeout=900, deadline=30 * 3600.0, poll_after=15, poll_max=300, poll_after_webhook=300,
    cancel_checks=14,
)  # fmt: skip
"""A batch has a day, and then its answers are written out. A cancel may take ten minutes."""

ASIDE = 60.0
"""Seconds kept for the creation, whatever the upload took; also the longest one answer may take."""
INLINE = 100_000
"""Bytes of answers that stand in the job itself, besides the file they always are in."""
LONGEST = 256 * 1024 * 1024
"""Bytes of one answer; pictures are large."""
SLACK = timedelta(minutes=10)
"""How far OpenAI's clock may differ from ours."""


@provider.task("batch", input=Batch, policy=POLICY, fetch_timeout=900)
async def batch(call: Call, input: Batch) -> Accepted:
    """Work on up to 50,000 requests within a day, at half the price."""
    uploaded = await _uploaded(call, input)
    given: dict[str, Any] = {
        "input_file_id": uploaded,
        "endpoint": input.endpoint,
        "completion_window": input.completion_window,
        "metadata": {**input.metadata, **mark(call), "agentflow_token": call.token},
    }
    if (seconds := input.output_expires_after) is not None:
        given["output_expires_after"] = {"anchor": "created_at", "seconds": seconds}
    async with _session(call, create=True) as client:
        made = await client.batches.create(**given, timeout=ASIDE * 0.8)
        if not made.id:
            raise OutcomeUnknown("OpenAI took the batch and named none.")
        return Accepted(made.id)


async def _uploaded(call: Call, input: Batch) -> str:
    """The id of the requests' file at OpenAI. It costs nothing, so whatever goes wrong here may be
    done again."""
    try:
        async with asyncio.timeout(call.timeout - ASIDE):
            with tempfile.TemporaryFile() as file:
                written = await write(call, input, file)
                call.progress(0.0, f"sending {written.requests} requests")
                async with _session(call) as client:
                    sent = (f"{call.job_id}.jsonl", file, "application/jsonl")
                    return (await client.files.create(file=sent, purpose="batch")).id
    except ProviderFailure:
        raise
    except TimeoutError:
        raise CallTimeout("The batch's file could not be sent in time.") from None
    except Exception as error:  # our disk, our custody
        raise Unavailable(f"The batch's file cannot be made: {error}"[:500]) from error


@asynccontextmanager
async def _session(call: Call, *, create: bool = False) -> AsyncIterator[AsyncOpenAI]:
    from agentflow_openai.session import session

    async with session(call, create=create) as client:
        yield client


@batch.fetch
async def fetch(call: Call, external_id: str) -> State:
    """The batch as it is now; once it has ended, with all answers."""
    from agentflow_openai.session import plain

    try:
        async with _session(call) as client:
            said = plain(await client.batches.retrieve(external_id, timeout=ASIDE / 2))
            return await _state(call, client, said)
    except ProviderFailure as refused:
        if is_gone(refused):
            lost = ResultLost("OpenAI no longer has the batch, or the file of its answers.")
            return Failed(lost, external_id=external_id)
        if isinstance(refused, Unstorable):
            return Failed(refused, external_id=external_id)
        raise


@batch.find
async def find(call: Call, token: str, since: datetime) -> str | None:
    """The batch whose metadata hold this token; the newest come first."""
    oldest = (since - SLACK).timestamp()
    async with _session(call) as client:
        async for each in client.batches.list(limit=100, timeout=ASIDE / 2):
            if (each.metadata or {}).get("agentflow_token") == token:
                return each.id
            if each.created_at < oldest:
                return None
    return None


@batch.cancel
async def cancel(call: Call, external_id: str) -> State | None:
    """Ask OpenAI to stop: it does within ten minutes. What is done by then is paid for."""
    try:
        async with _session(call) as client:
            made = await client.batches.cancel(external_id, timeout=ASIDE / 2)
            return Canceled(external_id=made.id) if made.status == "cancelled" else None
    except ProviderFailure as refused:
        if refused.detail.get("status") in (400, 404, 409):  # it has ended, or is being cancelled
            return None
        raise


async def _state(call: Call, client: AsyncOpenAI, said: Mapping[str, Any]) -> State:
    about = responses.identity(said)
    match said.get("status"):
        case "failed":
            return Failed(invalid(said.get("errors")), external_id=about)
        case "cancelled":
            return Canceled(external_id=about)
        case "expired" if not said.get("output_file_id"):
            late = CallTimeout("The batch expired before any request was answered.")
            late.retryable = False  # it would not do better today
            return Failed(late, external_id=about)
        case "completed" | "expired":
            return Succeeded(await _gathered(call, client, said), external_id=about)
        case status:
            return Progressed(*progress(said), external_id=about) if status else Progressed()


def progress(said: Mapping[str, Any]) -> tuple[float | None, str]:
    """How far a batch is."""
    counts = numbers(said.get("request_counts"), ("total", "completed", "failed"))
    total, status = counts.get("total", 0), f"{said.get('status')}"[:100]
    if not total > 0:
        return None, status
    done = counts.get("completed", 0) + counts.get("failed", 0)
    return max(0.0, min(1.0, done / total)), f"{status}: {done:g} of {total:g}"


def invalid(errors: Any) -> ProviderFailure:
    """Why OpenAI did not begin a batch; nothing of it was done."""
    data = errors.get("data") if isinstance(errors, Mapping) else None
    found = [each for each in data or () if isinstance(each, Mapping)]
    said = "; ".join(
        (f"line {each['line']}: " if each.get("line") else "") + str(each.get("message"))
        for each in found[:10]
    )
    code = next((each["code"] for each in found if isinstance(each.get("code"), str)), None)
    text = f"OpenAI did not begin the batch. {said}".strip()[:2000]
    detail = {"code": code} if code else {}
    match code:
        case "token_limit_exceeded":  # of what is enqueued; other batches end
            return RateLimited(text, retry_after=600.0, detail=detail)
        case "billing_hard_limit_reached" | "insufficient_quota":
            return QuotaExceeded(text, detail=detail)
        case _:
            return InvalidInput(text, detail=detail)


async def _gathered(call: Call, client: AsyncOpenAI, said: Mapping[str, Any]) -> Result:
    """The answers as a file, and where they are few also as values. Memory holds a name and a
    place for each; a 404 says that a file is gone."""
    order: dict[str, bool] = {}
    try:
        async for _, line in _lines(client, said.get("input_file_id")):
            if (found := wanted(line)) is not None:
                order[found[0]] = found[1]
    except Exception as error:
        if not is_gone(error):
            raise
        order.clear()  # deleted by somebody: the answers come as OpenAI wrote them
    with tempfile.TemporaryFile() as file:
        results = Results(str(said.get("endpoint")), str(said.get("status")), order, file)
        for name in ("output_file_id", "error_file_id"):
            async for _, line in _lines(client, said.get(name)):
                results.read(line)
        results.complete()
        kept = await call.keep(results.lines(), "results.jsonl", "application/jsonl")
        return await _result(said, results, kept)


async def _result(said: Mapping[str, Any], results: Results, kept: Artifact) -> Result:
    drawn = results.pictures or results.endpoint.startswith("/v1/images")
    small = results.size <= INLINE and not drawn
    counts = {name: results.counts[name] for name in ("succeeded", "failed")}
    return Result(
        output={
            "status": results.ended,
            "endpoint": results.endpoint,
            "model": said.get("model"),
            "counts": {"total": sum(counts.values()), **counts},
            "items": await results.items() if small else None,
        },
        artifacts=[kept],
        usage=responses.tokens(said.get("usage")) or dict(results.usage),
    )


async def _lines(client: AsyncOpenAI, file: Any) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of a file of OpenAI's, as they arrive; none if there is no such file."""
    if not isinstance(file, str) or not file:
        return
    asked = client.files.with_streaming_response.content(file, timeout=ASIDE)
    async with asked as answer:
        try:
            async for line in numbered(answer.iter_bytes(), LONGEST):
                yield line
        except InvalidInput as error:
            raise Unstorable(error.message) from None
