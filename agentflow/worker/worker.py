"""The worker: claims attempts, makes their calls, and reports until the writer has confirmed.

It has no database and cannot submit. Every task is registered in Taskiq under its own name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import httpx
import orjson
import structlog
from structlog.contextvars import bound_contextvars

from agentflow.artifacts import ArtifactStore, ArtifactTooLarge, Source, collect, guarded_client
from agentflow.clock import Clock
from agentflow.core.events import (
    Abandoned,
    Canceled,
    Envelope,
    Event,
    Failed,
    Progressed,
    Succeeded,
    name_of,
)
from agentflow.core.events import Source as From
from agentflow.core.job import Status
from agentflow.core.providers import Task
from agentflow.core.results import Artifact, Custody, artifact_place
from agentflow.errors import ErrorKind, InvalidInput, PluginError, ProviderFailure, Unstorable
from agentflow.plugins.catalogue import Catalogue, Ready
from agentflow.plugins.limiting import Limits
from agentflow.telemetry import traces
from agentflow.telemetry.metrics import Metrics
from agentflow.transport.conversation import Claim, Denied, Granted, Message, WorkerSide
from agentflow.transport.live import Outlet
from agentflow.transport.permits import Ledger, LocalLedger
from agentflow.types import JobId, Token, new_id
from agentflow.worker.call import Call
from agentflow.worker.line import Permit
from agentflow.worker.outcomes import failure_of, outcome_of
from agentflow.worker.room import Room
from agentflow.worker.running import load, run_function
from agentflow.worker.speech import Speech
from agentflow.worker.spool import Spool

log = structlog.get_logger(__name__)

MOST_UNHEARD = 1000
"""Reports of progress on their way; more are not made."""

PROGRESS_EVERY = 0.5
"""Seconds between two reports of progress of one attempt."""


class Worker:
    """`max_result` and `max_artifact` are in bytes."""

    def __init__(
        self,
        catalogue: Catalogue,
        writer: WorkerSide,
        store: ArtifactStore,
        spool: Spool,
        clock: Clock,
        *,
        id: str,
        max_result: int,
        max_artifact: int,
        allow_downloads: frozenset[str] = frozenset(),
        metrics: Metrics | None = None,
        outlet: Outlet | None = None,
        limits: Limits | None = None,
        ledger: Ledger | None = None,
        concurrency: int = 64,
    ) -> None:
        self.id = id
        self.outlet = outlet
        """Where live text goes; None: nowhere."""
        self.metrics = metrics or Metrics(catalogue.tasks, catalogue.providers)
        self.limits = limits or Limits(catalogue)
        ledger = ledger or LocalLedger(lambda: clock.now().timestamp())
        self.room = Room(ledger, concurrency, self.metrics)
        self._stopping = asyncio.Event()
        self._asking: dict[str, Claim] = {}
        self.catalogue, self.writer, self.store = catalogue, writer, store
        self.spool, self.clock = spool, clock
        self.max_result, self.max_artifact = max_result, max_artifact
        self.http = httpx.AsyncClient(
            timeout=30.0, follow_redirects=False, verify=_known_authorities()
        )
        self.downloads = guarded_client(allow_downloads)
        self.running: dict[tuple[JobId, int], Running] = {}
        self.collecting: set[tuple[JobId, int]] = set()
        self.fetching: dict[tuple[JobId, int], bool] = {}
        """What is being asked after, and whether somebody asked again meanwhile."""
        self._reports: set[asyncio.Task[None]] = set()

    async def recover(self) -> None:
        """Say again what an earlier process did not get confirmed."""
        for envelope in self.spool.recover():
            await self.writer.report(envelope)
            self.spool.confirmed(envelope)

    async def execute(self, message: Message, taken: Callable[[], None] = lambda: None) -> None:
        """One broker message: wait for a permit, claim, call, report. Never raises but for
        cancellation. `taken` is called once the message is ours to answer for; one that waits is
        not, and goes to another worker if this one stops."""
        about = {"job_id": message.job_id, "attempt": message.attempt, "task": message.task}
        demand = self.limits.for_call(message.task, message.input)
        with bound_contextvars(**about):
            async with self.room.place(message, demand) as permit:
                if permit is not None:
                    taken()
                    await self._execute(message, permit)

    async def _execute(self, message: Message, permit: Permit) -> None:
        task = self.catalogue.task(message.task)
        nonce, account = new_id("nonce"), permit.option.account
        claim = Claim(message.job_id, message.attempt, nonce, self.id, task.name, account)
        if task.policy.repeatable and not self.catalogue.prices.has(task.name):
            # What has a price may be under a budget, which has its say with the grant.
            asking = asyncio.ensure_future(self.writer.claim(claim))
            grant = Granted(task.policy.timeout, message.deadline, True)
            await self._call(task, message, grant, permit, claim, asking)
            return
        if self._stopping.is_set():
            return
        with self._span("claim", message) as span:
            self._asking[nonce] = claim
            answer = await self.writer.claim(claim)
            del self._asking[nonce]
            denied = isinstance(answer, Denied)
            span.set_attribute("outcome", "denied" if denied else "granted")
        if isinstance(answer, Denied):
            self.room.give_back(permit)
            log.debug("Claim denied", job_id=message.job_id, reason=answer.reason)
            await self._decline(claim, answer)
            return
        if self._stopping.is_set():
            await self.report(self._unused(claim))
            return
        await self._call(task, message, answer, permit, claim, None)

    async def _decline(self, claim: Claim, denied: Denied) -> None:
        """A job may be canceled before the answer to a claim goes out, in the claim's own turn
        even: the machine has then granted, and would wait for our report until the lease ends."""
        if denied.reason == Status.CANCELING.value:
            await self.report(self._unused(claim))

    def _unused(self, claim: Claim) -> Envelope:
        """The grant of this asking, if there is one, was not used."""
        event = Abandoned(called=False, nonce=claim.nonce, attempt=claim.attempt)
        return self.envelope(claim.job_id, f"unused:{claim.nonce}", event)

    def stop_attempt(self, job: JobId, attempt: int) -> None:
        """Cancel the attempt's task, unless its create is in flight: that must answer first."""
        running = self.running.get((job, attempt))
        if running is not None and not running.shielded:
            running.canceled = True
            running.task.cancel()

    def held(self, task: str, seconds: float, place: str) -> None:
        """A function held the event loop for so long. Called in another thread."""
        self.metrics.loop_held[self.metrics.task(task),].inc()
        said = f"held the event loop for {seconds:.1f} s, at {place}; a plain def has a thread"
        self.catalogue.misconduct[task] = said
        log.error("A function held the event loop", task=task, seconds=round(seconds, 1), at=place)

    async def drain(self, grace: float) -> None:
        """Let running calls end for `grace` seconds; hand back what then still runs. A claim that
        is not answered by then is given up in the spool: it may have been granted all the same."""
        self._stopping.set()
        self.room.close()
        tasks = {r.task for r in self.running.values()}
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for (job, attempt), running in list(self.running.items()):
            running.abandoned = True
            running.task.cancel()
            log.warning("Call abandoned", job_id=job, attempt=attempt)
        left = {r.task for r in self.running.values()} | self._reports
        if left:
            await asyncio.wait(left, timeout=5.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                while self._asking or self.running:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.02)
        for claim in self._asking.values():
            self.spool.add(self._unused(claim))

    async def close(self) -> None:
        await self.http.aclose()
        await self.downloads.aclose()
        self.spool.close()

    async def beat(self) -> None:
        """Tell the writer, again and again, that these attempts live."""
        while True:
            shortest = min((t.policy.lease for t in self.catalogue.tasks.values()), default=15.0)
            await asyncio.sleep(shortest / 3)
            alive = [*self.running, *self.collecting]
            if alive:
                self.writer.beat(self.id, alive)

    async def report(self, envelope: Envelope) -> None:
        """Keep it in the spool until the writer has committed it."""
        try:
            self.spool.add(envelope)
        except OSError as error:  # the disk is full: the writer hears it all the same
            log.error("The spool cannot be written", error=str(error)[:200])
        await self.writer.report(envelope)
        self.spool.confirmed(envelope)

    def envelope(self, job: JobId, id: str, event: Event, source: From = From.WORKER) -> Envelope:
        return Envelope(id, source, self.clock.now(), job, event)

    # -- one call --------------------------------------------------------------------------------

    async def _call(
        self,
        task: Task[Any],
        message: Message,
        grant: Granted,
        permit: Permit,
        claim: Claim,
        asking: asyncio.Future[Granted | Denied] | None,
    ) -> None:
        """The span is the current one of the plugin's code, so that those of its HTTP client, if
        that is instrumented, lie within."""
        with self._span("call", message) as span:
            await self._traced_call(task, message, grant, permit, claim, asking, span)

    def _span(self, what: str, message: Message) -> AbstractContextManager[traces.Span]:
        return traces.span(
            f"{what} {message.task}",
            traces.context_of(message.trace),
            kind=traces.SpanKind.CLIENT,
            job_id=message.job_id,
            attempt=message.attempt,
            task=message.task,
        )

    async def _traced_call(
        self,
        task: Task[Any],
        message: Message,
        grant: Granted,
        permit: Permit,
        claim: Claim,
        asking: asyncio.Future[Granted | Denied] | None,
        span: traces.Span,
    ) -> None:
        ready, nonce = self.catalogue.of_task(task.name), claim.nonce
        shielded = not task.policy.repeatable and not ready.provider.local
        speech = Speech(message.job_id, message.attempt, nonce, self.outlet)
        work = asyncio.ensure_future(
            self._outcome(task, ready, message, grant, shielded, permit, speech)
        )
        running = Running(work, shielded)
        key = (message.job_id, message.attempt)
        self.running[key] = running
        began = time.perf_counter()
        try:
            event = await _ended(work)
            self._settle(permit, event)
            await speech.end()
            said = _outcome_name(event, running)
            span.set_attribute("outcome", said)
            label = self.metrics.task(task.name)
            self.metrics.calls[label, said].observe(time.perf_counter() - began)
            if asking is not None and isinstance(answer := await asking, Denied):
                await self._decline(claim, answer)
                return
            if running.abandoned and event is None:
                event = Abandoned(called=True, nonce=nonce)
            event = event or (
                Canceled() if running.canceled else Abandoned(called=True, nonce=nonce)
            )
            numbered = replace(event, attempt=message.attempt)
            id = f"out:{message.attempt}:{nonce}"
            await self.report(self.envelope(message.job_id, id, numbered))
        finally:
            self.running.pop(key, None)

    def _settle(self, permit: Permit, event: Event | None) -> None:
        """The permit covers the call alone: what is reported now may take its time."""
        error = event.error if isinstance(event, Failed) else None
        if error and error.kind is ErrorKind.RATE_LIMITED and error.retry_after:
            self.room.pause(permit, error.retry_after)
        self.room.give_back(permit)

    async def _outcome(
        self,
        task: Task[Any],
        ready: Ready,
        message: Message,
        grant: Granted,
        shielded: bool,
        permit: Permit,
        speech: Speech,
    ) -> Event:
        """Run the task's function. Everything but cancellation becomes an event."""
        about = message.job_id, message.attempt, message.token
        call = self.make_call(task, ready, *about, grant, permit.option.account)
        call = replace(call, on_text=speech.say)
        try:
            input = task.validate(message.input)
            await load(ready.provider.loads)
            self.room.begin(permit)
            async with asyncio.timeout(grant.timeout):
                returned = await run_function(task.function, call, input)
            return await self.stored(outcome_of(returned, task), message.job_id)
        except ProviderFailure as failure:
            return Failed(failure_of(failure, ready, task, unsure=shielded))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the plugin's code and whatever it calls
            log.info(
                "Call failed", job_id=message.job_id, task=task.name, kind=type(error).__name__
            )
            return Failed(failure_of(error, ready, task, unsure=shielded))

    def make_call(
        self,
        task: Task[Any],
        ready: Ready,
        job: JobId,
        attempt: int,
        token: Token,
        grant: Granted,
        account: str | None,
    ) -> Call:
        last = 0.0

        def progress(fraction: float | None, text: str | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < PROGRESS_EVERY and fraction != 1.0:
                return
            last = now
            event = Progressed(fraction=fraction, message=text, attempt=attempt)
            self._tell(self.envelope(job, new_id(f"progress:{attempt}"), event))

        return Call(
            settings=ready.settings_of(account),
            http=self.http,
            job_id=job,
            attempt=attempt,
            token=token,
            webhook_url=self.catalogue.webhook_url(task.name, token),
            idempotency_key=f"{job}:{attempt}",
            timeout=grant.timeout,
            deadline=grant.deadline,
            log=log.bind(job_id=job, attempt=attempt, task=task.name),
            on_progress=progress,
            open_artifact=self._open_artifact,
            keep_artifact=self._keeper(job),
        )

    def _tell(self, envelope: Envelope) -> None:
        """Report something whose loss would matter little."""
        if len(self._reports) >= MOST_UNHEARD:  # nobody listens: what is new will be said later
            return
        report = asyncio.ensure_future(self.writer.report(envelope))
        self._reports.add(report)
        report.add_done_callback(self._reports.discard)

    def _keeper(
        self, job: JobId
    ) -> Callable[[AsyncIterator[bytes], str, str], Awaitable[Artifact]]:
        places = count()

        async def keep(chunks: AsyncIterator[bytes], name: str, media_type: str) -> Artifact:
            key = artifact_key(job, next(places))
            try:
                kept = await self.store.put(key, chunks, max_bytes=self.max_artifact)
            except ArtifactTooLarge as error:
                raise Unstorable(error.message) from error
            return Artifact(
                None, name, media_type, status=Custody.STORED,
                sha256=kept.sha256, size=kept.size, key=key,
            )  # fmt: skip

        return keep

    @asynccontextmanager
    async def _open_artifact(self, id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        place = artifact_place(id)
        key = artifact_key(*place) if place else ""
        if not place or await self.store.size(key) is None:
            raise InvalidInput(f"There is no file {id} in custody")
        yield await self.store.open(key)

    # -- results ---------------------------------------------------------------------------------

    async def stored(self, outcome: Event, job: JobId) -> Event:
        """An outcome fit for a row: inline files and large outputs go straight into custody."""
        if not isinstance(outcome, Succeeded):
            return outcome
        result = outcome.result
        for i, a in enumerate(result.artifacts):
            if a.key is not None and a.key != artifact_key(job, i):
                raise PluginError("Kept files come first among the artifacts, in their order.")
        artifacts = [
            await self.copy(a, artifact_key(job, i), None) if _inline(a) else a
            for i, a in enumerate(result.artifacts)
        ]
        output = result.output
        encoded = orjson.dumps([output, result.text])
        text = result.text
        if len(encoded) > self.max_result:
            index = len(artifacts)
            key = artifact_key(job, index)
            kept = await self.store.put(
                key, _once(orjson.dumps(output)), max_bytes=self.max_artifact
            )
            artifacts.append(
                Artifact(
                    None, "output.json", "application/json", status=Custody.STORED,
                    sha256=kept.sha256, size=kept.size, key=key,
                )
            )  # fmt: skip
            output, text = None, None
        return replace(
            outcome, result=replace(result, output=output, text=text, artifacts=artifacts)
        )

    async def copy(self, artifact: Artifact, key: str, hosts: Any) -> Artifact:
        """The artifact in custody. Raises what `collect` raises."""
        assert artifact.url is not None, "a pending artifact has a source"
        source = Source(url=artifact.url, media_type=artifact.media_type, name=artifact.name)
        kept = await collect(
            source,
            self.store,
            self.downloads,
            key=key,
            max_bytes=self.max_artifact,
            allowed_hosts=hosts,
        )
        url = None if _inline(artifact) else artifact.url
        return replace(
            artifact, url=url, status=Custody.STORED, key=kept.key, sha256=kept.sha256,
            size=kept.size, media_type=kept.media_type, name=kept.name,
        )  # fmt: skip


@cache  # reading the certificates takes longer than all else at start
def _known_authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class Running:
    """A call under way."""

    __slots__ = ("abandoned", "canceled", "shielded", "task")

    def __init__(self, task: asyncio.Future[Event], shielded: bool) -> None:
        self.task, self.shielded = task, shielded
        self.canceled = self.abandoned = False


def artifact_key(job: JobId, index: int) -> str:
    """Where a file lies in the store: derived from its id, so that no look-up is needed."""
    digits = job.removeprefix("job_")
    return f"{digits[:8]}/{digits}/{index}"


def _inline(artifact: Artifact) -> bool:
    return artifact.url is not None and artifact.url.startswith("data:")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _outcome_name(event: Event | None, running: Running) -> str:
    """What the call came to, in a word: an event's name, or the kind of its error."""
    if isinstance(event, Failed):
        return str(event.error.kind)
    if event is not None:
        return name_of(event)
    return "canceled" if running.canceled and not running.abandoned else "abandoned"


async def _ended(work: asyncio.Future[Event]) -> Event | None:
    """The work's outcome; None if it was cancelled. Our own cancellation does not reach it."""
    await asyncio.wait([work])
    if work.cancelled():
        return None
    with contextlib.suppress(asyncio.CancelledError):
        return work.result()
    return None
