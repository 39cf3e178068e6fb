"""Chores: asking after work at the provider and bringing its files home. Harmless to repeat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars

from agentflow.artifacts import ArtifactStoreError, SourceGone, SourceRefused, SourceUnavailable
from agentflow.core.events import (
    Accepted,
    Canceled,
    Collected,
    Event,
    Failed,
    Succeeded,
    load_event,
)
from agentflow.core.events import Source as From
from agentflow.core.results import Artifact, Custody
from agentflow.plugins.catalogue import Ready
from agentflow.plugins.patience import spoken
from agentflow.telemetry import traces
from agentflow.transport.conversation import Chore
from agentflow.types import new_id
from agentflow.worker.call import Call
from agentflow.worker.files import artifact_key
from agentflow.worker.outcomes import news_of, redacted
from agentflow.worker.running import load, with_input
from agentflow.worker.worker import Worker

log = structlog.get_logger(__name__)

CHORE_TIMEOUT = 30.0


async def do_chore(worker: Worker, chore: Chore) -> None:
    """Do it and report what was learned. What fails is tried again by the job's next alarm."""
    doing: dict[str, Callable[[Worker, Chore], Awaitable[None]]] = {
        "fetch": _fetch,
        "find": _find,
        "cancel": _cancel,
        "collect": _collect,
        "stop": _stop,
    }
    about: dict[str, str | int]
    about = {"job_id": chore.job_id, "attempt": chore.attempt, "task": chore.task}
    span = traces.span(
        f"{chore.kind} {chore.task}",
        traces.context_of(chore.trace),
        kind=traces.SpanKind.CLIENT,
        **about,
    )
    with span as opened, bound_contextvars(tenant=chore.tenant, **about):
        began = time.perf_counter()
        outcome = await _done(worker, chore, doing[chore.kind])
        opened.set_attribute("outcome", outcome)
        label = chore.kind, outcome
        worker.metrics.chores[label].observe(time.perf_counter() - began)


async def _done(
    worker: Worker, chore: Chore, do: Callable[[Worker, Chore], Awaitable[None]]
) -> str:
    """`done`, or `failed` with a line in the log."""
    try:
        await load(worker.catalogue.of_task(chore.task).provider.loads)
        await do(worker, chore)
        return "done"
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the plugin's code, the network
        ready = worker.catalogue.of_task(chore.task)
        said = redacted(spoken(error), ready.settings)[:300]
        log.info(
            "Chore failed",
            chore=chore.kind,
            job_id=chore.job_id,
            kind=type(error).__name__,
            error=said,
        )
        return "failed"


async def _fetch(worker: Worker, chore: Chore) -> None:
    """One at a time for an attempt: some bring large files. Who asks meanwhile may know something
    newer than what is being read, so it is asked once more, unless that was the end."""
    task = worker.catalogue.task(chore.task)
    if task.fetcher is None or chore.external_id is None:
        return
    key = (chore.job_id, chore.attempt)
    if key in worker.fetching:
        worker.fetching[key] = True
        return
    worker.fetching[key] = again = True
    try:
        while again:
            worker.fetching[key] = False
            call = _call(worker, chore, task.fetch_timeout)
            fetch = with_input(task, task.fetcher, chore.input)
            async with asyncio.timeout(task.fetch_timeout):
                news = news_of(await worker.tools.run(task, fetch, call, chore.external_id), task)
            if news is not None:
                await _report(worker, chore, news)
            again = worker.fetching[key] and not isinstance(news, Succeeded | Failed | Canceled)
    finally:
        del worker.fetching[key]


async def _cancel(worker: Worker, chore: Chore) -> None:
    task = worker.catalogue.task(chore.task)
    if task.canceler is None or chore.external_id is None:
        return
    cancel = with_input(task, task.canceler, chore.input)
    async with asyncio.timeout(CHORE_TIMEOUT):
        call = _call(worker, chore)
        news = news_of(await worker.tools.run(task, cancel, call, chore.external_id), task)
    if news is not None:
        await _report(worker, chore, news)
    else:
        await _fetch(worker, chore)


async def _find(worker: Worker, chore: Chore) -> None:
    task = worker.catalogue.task(chore.task)
    if task.finder is None:
        return
    find = with_input(task, task.finder, chore.input)
    async with asyncio.timeout(CHORE_TIMEOUT):
        call = replace(_call(worker, chore), strays=chore.strays)
        found = await worker.tools.run(task, find, call, chore.token, chore.since)
    if found is not None:
        await _report(worker, chore, Accepted(str(found)))


async def _stop(worker: Worker, chore: Chore) -> None:
    worker.stop_attempt(chore.job_id, chore.attempt)


async def _collect(worker: Worker, chore: Chore) -> None:
    key = (chore.job_id, chore.attempt)
    if key in worker.collecting:
        return
    worker.collecting.add(key)
    try:
        ready = worker.catalogue.of_task(chore.task)
        event = load_event("collected", {"artifacts": list(chore.artifacts)})
        assert isinstance(event, Collected)
        copied = await asyncio.gather(
            *(_copy(worker, ready, chore, i, a) for i, a in enumerate(event.artifacts))
        )
        if any(a.status is not Custody.PENDING for a in copied):
            await _report(worker, chore, Collected(copied), From.WORKER)
    finally:
        worker.collecting.discard(key)


async def _copy(
    worker: Worker, ready: Ready, chore: Chore, index: int, artifact: Artifact
) -> Artifact:
    """The file in custody, lost with a note, or as it was if another try may help."""
    if artifact.status is not Custody.PENDING:
        return artifact
    try:
        key = artifact_key(chore.job_id, index)
        return await worker.files.copy(artifact, key, ready.artifact_hosts)
    except (SourceGone, SourceRefused) as error:
        return replace(artifact, status=Custody.LOST, note=error.message[:300])
    except (SourceUnavailable, ArtifactStoreError) as error:
        log.info("File not copied yet", job_id=chore.job_id, error=error.message[:300])
        return artifact


def _call(worker: Worker, chore: Chore, timeout: float = CHORE_TIMEOUT) -> Call:
    return worker.tools.call(chore, timeout=timeout, deadline=chore.deadline, account=chore.account)


async def _report(worker: Worker, chore: Chore, news: Event, source: From = From.POLL) -> None:
    changes: dict[str, Any] = {"attempt": chore.attempt}
    if chore.external_id is not None and hasattr(news, "external_id"):
        changes["external_id"] = chore.external_id
    event = await worker.files.stored(replace(news, **changes), chore.job_id)
    id = new_id(f"{chore.kind}:{chore.attempt}")
    await worker.reports.send(worker.reports.envelope(chore.job_id, id, event, source))
