"""Checks of what one attempt comes to when things go wrong, which decides what is paid twice."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import orjson
import pytest

from agentflow.core.events import Accepted, Failed, Succeeded, dump_event, name_of
from agentflow.errors import ErrorKind, ProviderFailure
from agentflow.testing.conformance.attempts import Attempts, kind, said
from agentflow.testing.conformance.fresh import in_fresh_process
from agentflow.testing.conformance.loop import in_loop
from agentflow.testing.conformance.making import classes_in
from agentflow.testing.conformance.order import Order, shape
from agentflow.testing.conformance.subject import Subject

UNKNOWN = ("ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError")
"""Errors of httpx, under whatever name it is installed, after which a request may have arrived."""
UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")


class Failing(Subject):
    @in_loop
    async def test_an_attempt_answers_as_the_order_says(self, order: Order) -> None:
        async with self.attempts() as attempts:
            outcome = await attempts.make(self.task(order), order.input)
            wanted = Accepted if order.later else Succeeded
            assert isinstance(outcome, wanted), (
                f"{order.task} comes to {said(outcome)}, not {wanted.__name__};"
                f" the order says later={order.later}"
            )
            assert attempts.asked == 1, (
                f"{attempts.asked} creates for one attempt: pass them through faulty() in the"
                " simulator, and make one in the task"
            )

    @in_loop
    async def test_a_status_comes_to_its_kind(self, order: Order, status: int) -> None:
        """And is asked once: an SDK that repeats a create by itself may pay twice."""
        async with self.attempts() as attempts:
            attempts.sim.faults.update(error_before=True, error_status=status)
            outcome = await attempts.make(self.task(order), order.input)
            assert kind(outcome) in self._kinds(order, status), (
                f"HTTP {status} comes to {said(outcome)}, not {sorted(self.statuses[status])}"
            )
            assert attempts.asked == 1, f"asked {attempts.asked} times: switch the retries off"
            assert isinstance(outcome, Failed)
            unknown = outcome.error.kind == ErrorKind.OUTCOME_UNKNOWN
            assert not (unknown and outcome.error.retryable), "an unknown outcome is not retryable"

    @in_loop
    async def test_a_rate_limit_says_when_to_come_back(self, order: Order) -> None:
        async with self.attempts() as attempts:
            attempts.sim.faults.update(rate_limit=1, rate_limit_seconds=7.0)
            outcome = await attempts.make(self.task(order), order.input)
            assert kind(outcome) == "rate_limited", f"429 comes to {said(outcome)}"
            assert isinstance(outcome, Failed)
            wait = outcome.error.retry_after
            assert wait is not None, "the 429 says when to come back; hand it on as retry_after"
            assert 5 <= wait <= 8, f"told to come back in 7 s, the plugin says {wait:g}"
            assert outcome.error.retryable

    @in_loop
    async def test_a_connection_that_was_never_made_can_be_tried_again(self, order: Order) -> None:
        sim = self.make()
        async with sim.serve():
            pass  # from here on nobody listens there
        with self.settings(sim) as ready:
            attempts = Attempts(ready, sim)
            outcome = await attempts.make(self.task(order), order.input)
            await attempts.close()
            assert kind(outcome) == "unavailable", f"a refused connection is {said(outcome)}"
            assert isinstance(outcome, Failed)
            assert outcome.error.retryable

    @pytest.mark.parametrize("fault", ["reset", "error_after", "hang"])
    @in_loop
    async def test_a_create_without_an_answer_is_unknown(self, order: Order, fault: str) -> None:
        """The work may exist: what is called a plain failure here is paid for twice."""
        task = self.task(order)
        if task.policy.repeatable:
            pytest.skip(f"{task.name} is harmless to repeat")
        async with self.attempts() as attempts:
            attempts.sim.faults.update({fault: 1}, hang_seconds=1.0)
            outcome = await attempts.make(task, order.input)
            assert attempts.sim.stats.faults[fault], f"the simulator does not play {fault}"
            assert kind(outcome) == "outcome_unknown", f"after a {fault} it is {said(outcome)}"
            assert attempts.asked == 1, f"asked {attempts.asked} times: switch the retries off"

    @in_loop
    async def test_a_create_that_takes_too_long_is_unknown(self, order: Order) -> None:
        """The time of the call is up while the provider works on it."""
        task = self.task(order)
        if task.policy.repeatable:
            pytest.skip(f"{task.name} is harmless to repeat")
        async with self.attempts() as attempts:
            attempts.sim.faults.update(hang=1)
            outcome = await attempts.make(task, order.input, timeout=1.5)
            if not attempts.asked:
                pytest.skip(f"{task.name} makes no create where it has a second only")
            assert kind(outcome) == "outcome_unknown", f"out of time it is {said(outcome)}"

    @in_loop
    async def test_a_slow_answer_is_waited_for(self, order: Order) -> None:
        async with self.attempts() as attempts:
            attempts.sim.faults.update(slow_body=1, slow_seconds=0.5)
            outcome = await attempts.make(self.task(order), order.input)
            assert isinstance(outcome, Accepted | Succeeded), f"it is {said(outcome)}"

    @in_loop
    async def test_a_missing_key_is_said_and_nothing_is_asked(self, order: Order) -> None:
        sim = self.make()
        secrets = {n: "" for n in self.secrets(sim) if n != self.webhook_setting}
        if not secrets:
            pytest.skip("the settings hold no key for calls")
        async with self.attempts(sim, **secrets) as attempts:
            outcome = await attempts.make(self.task(order), order.input)
            assert kind(outcome) == "authentication", (
                f"without {', '.join(secrets)} it is {said(outcome)}: raise AuthenticationFailed"
                " before anything is sent"
            )
            requests = attempts.sim.stats.counts["requests"]
            assert requests == 0, "without a key the provider is asked all the same"

    @in_loop
    async def test_each_attempt_in_a_fresh_process_gives_the_same(self, order: Order) -> None:
        """Any worker may make any attempt: nothing that counts lies in a module's variables."""
        async with self.attempts() as attempts:
            here = await attempts.make(self.task(order), order.input)
            input = attempts.with_files(order.input)
            files = {id: base64.b64encode(each).decode() for id, each in attempts.files.items()}
            asked = {"task": self.task(order).name, "input": input, "files": files}
            there = await asyncio.to_thread(in_fresh_process, self.provider, "attempt", asked)
            same = [name_of(here), shape(orjson.loads(dump_event(here)))]
            there[1] = shape(orjson.loads(there[1]))
            assert there == same, f"in a process of its own it is {there}, here {same}"

    # -- the table of errors ---------------------------------------------------------------------

    def test_every_error_of_the_sdk_has_its_row(self) -> None:
        """Compared with the exceptions the modules in `errors` define: a new one of the next
        version must not fall through."""
        translate = self._translator()
        for cls in classes_in(self.errors):
            error = self.sdk_error(cls)
            if error is None:
                continue
            found = translate(error)
            assert isinstance(found, ProviderFailure), (
                f"translate() knows no {cls.__module__}.{cls.__qualname__}"
            )

    def test_every_error_of_the_sdk_comes_to_its_kind(self) -> None:
        """As `error_kinds` says, which says something of each: the class that the next version of
        the SDK brings is looked at by a person before the row of its base judges it."""
        translate = self._translator()
        if not self.error_kinds:
            pytest.skip("error_kinds is not set: only that each error is known is checked")
        told = {name.partition(".")[0] for name in self.error_kinds}
        for cls in classes_in(self.errors):
            name = f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"
            error = self.sdk_error(cls) if name.partition(".")[0] in told else None
            if error is None:
                continue
            assert name in self.error_kinds, f"error_kinds does not say what {name} comes to"
            found, wanted = translate(error), self.error_kinds[name]
            assert found is not None
            assert found.kind == wanted, f"{name} comes to {found.kind}, not {wanted}"

    def test_errors_of_the_connection_are_told_apart(self) -> None:
        """Never sent: try again. Sent and unanswered: nobody knows."""
        translate = self._translator()
        for cls in classes_in(self.errors):
            wanted = _meant(cls.__name__)
            error = self.sdk_error(cls) if wanted else None
            if error is None:
                continue
            found = translate(error)
            assert found is not None
            assert found.kind == wanted, f"{cls.__qualname__} is {found.kind}, not {wanted}"
            assert found.retryable is (wanted == "unavailable"), cls.__qualname__

    def test_a_bug_is_not_translated(self) -> None:
        """An error that is not the SDK's is nothing the provider said: `None`."""
        if self.provider.translator is None:
            pytest.skip("the plugin has no translate")
        for bug in (ValueError("x"), KeyError("x"), TypeError("x"), AttributeError("x")):
            found = self.provider.translator(bug)
            assert found is None, f"translate() makes {found!r} of a {type(bug).__name__}"

    def _translator(self) -> Any:
        if not self.errors:
            pytest.skip("errors names no module: the plugin uses no SDK")
        assert self.provider.translator is not None, "errors names modules; give it a translate"
        return self.provider.translator

    def _kinds(self, order: Order, status: int) -> frozenset[str]:
        wanted = self.statuses[status]
        if self.task(order).policy.repeatable and "outcome_unknown" in wanted:
            return wanted | {"unavailable", "timeout"}
        return wanted


def _meant(name: str) -> str | None:
    """What an error of a connection comes to, by its name; an SDK's own timeout too."""
    if name in UNSENT:
        return "unavailable"
    return "outcome_unknown" if name in UNKNOWN or "Timeout" in name else None
