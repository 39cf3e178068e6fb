"""One attempt in a worker: it asks for the grant, makes the call, and reports what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from agentflow.core.events import Abandoned, Canceled, Envelope, Event, Failed, name_of
from agentflow.core.job import Status
from agentflow.errors import ErrorKind, ProviderFailure
from agentflow.telemetry import traces
from agentflow.transport.conversation import Claim, Denied, Granted, Message
from agentflow.types import JobId, new_id
from agentflow.worker.line import Permit
from agentflow.worker.outcomes import failure_of, outcome_of
from agentflow.worker.running import load
from agentflow.worker.speech import Speech
from agentflow.worker.tools import Tools

log = structlog.get_logger(__name__)


class Attempt:
    """What `message` asks for, done with `permit` by the worker of this id."""

    def __init__(self, tools: Tools, message: Message, permit: Permit, worker: str) -> None:
        self._tools, self._message, self._permit = tools, message, permit
        self._task = tools.catalogue.task(message.task)
        self._ready = tools.catalogue.of_task(message.task)
        self.claim = Claim(
            message.job_id, message.attempt, new_id("nonce"), worker, self._task.name,
            permit.option.account,
        )  # fmt: skip
        self.work: asyncio.Future[Event] | None = None
        """The call, once it is under way."""
        self._shielded = not (self._task.policy.repeatable or self._ready.provider.local)
        self._canceled = self._abandoned = False

    @property
    def key(self) -> tuple[JobId, int]:
        return self._message.job_id, self._message.attempt

    @property
    def needs_grant(self) -> bool:
        """Whether nothing may be called before the writer says so."""
        prices, repeatable = self._tools.catalogue.prices, self._task.policy.repeatable
        return not prices.calls_first(self._task.name, repeatable)

    async def ask(self) -> Granted | Denied:
        """Claim it, and wait for the writer's answer."""
        with self._span("claim") as span:
            answer = await self._tools.writer.claim(self.claim)
            span.set_attribute("outcome", "denied" if isinstance(answer, Denied) else "granted")
        return answer

    async def decline(self, denied: Denied) -> None:
        """A job may be canceled before the answer to a claim goes out, in the claim's own turn
        even: the machine has then granted, and would wait for our report until the lease ends."""
        self._tools.room.give_back(self._permit)
        if denied.reason == Status.CANCELING.value:
            await self.hand_back()

    async def hand_back(self) -> None:
        """Report that no call was made."""
        await self._tools.reports.send(self.unused())

    def unused(self) -> Envelope:
        """The grant of this asking, if there is one, was not used."""
        event = Abandoned(called=False, nonce=self.claim.nonce, attempt=self.claim.attempt)
        return self._envelope(f"unused:{self.claim.nonce}", event)

    async def call(self, grant: Granted | None) -> None:
        """Make the call and report its outcome. Without a grant it is claimed meanwhile, and only
        reported if that is granted.

        The span is the current one of the plugin's code, so that those of its HTTP client, if
        that is instrumented, lie within."""
        asking = None if grant else asyncio.ensure_future(self._tools.writer.claim(self.claim))
        grant = grant or Granted(self._task.policy.timeout, self._message.deadline, True)
        with self._span("call") as span:
            began = time.perf_counter()
            event = await self._made(grant)
            said = self._said(event)
            span.set_attribute("outcome", said)
            label = self._tools.metrics.task(self._task.name), said
            self._tools.metrics.calls[label].observe(time.perf_counter() - began)
            if asking is not None and isinstance(answer := await asking, Denied):
                await self.decline(answer)
            else:
                await self._report(event or self._stopped())

    def stop(self) -> None:
        """Cancel the call, unless a create is in flight: that must answer first."""
        if self.work is not None and not self._shielded:
            self._canceled = True
            self.work.cancel()

    def abandon(self) -> None:
        """Leave the call, whatever it is at."""
        self._abandoned = True
        if self.work is not None:
            self.work.cancel()

    # -- inside ----------------------------------------------------------------------------------

    async def _made(self, grant: Granted) -> Event | None:
        """What the call came to; None if it was stopped."""
        message = self._message
        speech = Speech(message.job_id, message.attempt, self.claim.nonce, self._tools.outlet)
        self.work = asyncio.ensure_future(self._outcome(grant, speech))
        event = await _ended(self.work)
        self._leave_room(event)
        await speech.end()
        return event

    async def _outcome(self, grant: Granted, speech: Speech) -> Event:
        """Run the task's function. Everything but cancellation becomes an event."""
        message, task, account = self._message, self._task, self.claim.account
        call = self._tools.call(
            message, timeout=grant.timeout, deadline=grant.deadline, account=account
        )
        call = replace(call, on_text=speech.say)
        try:
            input = task.validate(message.input)
            await load(self._ready.provider.loads)
            self._tools.room.begin(self._permit)
            async with asyncio.timeout(grant.timeout):
                returned = await self._tools.run(task, task.function, call, input)
            outcome = outcome_of(returned, task)
            patient = self._before(grant.deadline)
            return await self._tools.files.stored_some_day(outcome, message.job_id, patient)
        except ProviderFailure as failure:
            return self._failed(failure)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the plugin's code and whatever it calls
            kind = type(error).__name__
            log.info("Call failed", job_id=message.job_id, task=task.name, kind=kind)
            return self._failed(error)

    def _before(self, deadline: datetime) -> Callable[[float], bool]:
        """Whether so many seconds more are still before the deadline."""
        clock = self._tools.reports.clock
        return lambda seconds: clock.now() + timedelta(seconds=seconds) < deadline

    def _failed(self, error: BaseException) -> Failed:
        return Failed(failure_of(error, self._ready, self._task, unsure=self._shielded))

    def _leave_room(self, event: Event | None) -> None:
        """The permit covers the call alone: what is reported now may take its time."""
        error = event.error if isinstance(event, Failed) else None
        if error and error.kind is ErrorKind.RATE_LIMITED and error.retry_after:
            self._tools.room.pause(self._permit, error.retry_after)
        self._tools.room.give_back(self._permit)

    def _stopped(self) -> Event:
        if self._canceled and not self._abandoned:
            return Canceled()
        return Abandoned(called=True, nonce=self.claim.nonce)

    def _said(self, event: Event | None) -> str:
        """What the call came to, in a word: an event's name, or the kind of its error."""
        if isinstance(event, Failed):
            return str(event.error.kind)
        return name_of(event or self._stopped())

    async def _report(self, event: Event) -> None:
        numbered = replace(event, attempt=self.claim.attempt)
        id = f"out:{self.claim.attempt}:{self.claim.nonce}"
        await self._tools.reports.send(self._envelope(id, numbered))

    def _envelope(self, id: str, event: Event) -> Envelope:
        return self._tools.reports.envelope(self.claim.job_id, id, event)

    def _span(self, what: str) -> AbstractContextManager[traces.Span]:
        message = self._message
        return traces.span(
            f"{what} {message.task}",
            traces.context_of(message.trace),
            kind=traces.SpanKind.CLIENT,
            job_id=message.job_id,
            attempt=message.attempt,
            task=message.task,
        )


async def _ended(work: asyncio.Future[Event]) -> Event | None:
    """The work's outcome; None if it was cancelled. Our own cancellation does not reach it."""
    await asyncio.wait([work])
    if work.cancelled():
        return None
    with contextlib.suppress(asyncio.CancelledError):
        return work.result()
    return None
