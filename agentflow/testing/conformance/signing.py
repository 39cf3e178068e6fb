"""Checks of the signature scheme, at the real endpoint: a forged webhook is never stored."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from agentflow.errors import SignatureError
from agentflow.testing.conformance import junk
from agentflow.testing.conformance.loop import in_loop
from agentflow.testing.conformance.subject import Subject
from agentflow.testing.conformance.world import World
from agentflow.types import new_id, utcnow

BODY = b'{"id":"conformance"}'


class Signing(Subject):
    @in_loop
    async def test_a_good_signature_is_taken(self) -> None:
        self.needs_webhooks()
        async with self.world() as world:
            await _taken(world, BODY, _sign(world), "signed by the simulator's own key")

    @in_loop
    async def test_a_signature_by_another_key_is_refused(self) -> None:
        self.needs_webhooks()
        async with self.world() as world:
            await _refused(world, BODY, _sign(world, forged=True), "signed by another key")

    @in_loop
    async def test_a_body_that_was_changed_is_refused(self) -> None:
        """Every byte counts: a scheme that signs a parsed body signs something else."""
        self.needs_webhooks()
        if not self.signs_body:
            pytest.skip("signs_body is False: a secret is shown, nothing is signed")
        async with self.world() as world:
            headers = _sign(world)
            for changed in (BODY + b" ", b" " + BODY, BODY.replace(b"c", b"C", 1), b""):
                await _refused(world, changed, headers, f"changed to {changed!r}")

    @in_loop
    async def test_a_signature_that_lacks_a_header_is_refused(self) -> None:
        self.needs_webhooks()
        async with self.world() as world:
            headers = _sign(world)
            for name in headers:
                less = {each: value for each, value in headers.items() if each != name}
                await _refused(world, BODY, less, f"without {name}")

    @in_loop
    async def test_a_header_from_another_webhook_is_refused(self) -> None:
        """The id and the time are signed too: else an old webhook is replayed under a new one."""
        self.needs_webhooks()
        async with self.world() as world:
            mine, other = _sign(world), _sign(world, hours=-0.01)
            for name in mine:
                if mine[name] != other[name]:
                    mixed = {**mine, name: other[name]}
                    await _refused(world, BODY, mixed, f"with the {name} of another webhook")

    @in_loop
    async def test_malformed_headers_are_refused_and_break_nothing(self) -> None:
        """`verify` raises `SignatureError` and nothing else, whatever a stranger wrote."""
        self.needs_webhooks()
        async with self.world() as world:
            headers = _sign(world)
            for name in headers:
                for value in junk.HEADERS:
                    odd = {each.lower(): text for each, text in headers.items()}
                    odd[name.lower()] = value
                    await _denied(world, BODY, odd, f"with {name}: {value[:40]!r}")

    @in_loop
    async def test_an_old_signature_is_refused(self) -> None:
        """A recorded webhook must not work for ever."""
        self.needs_webhooks()
        tolerance = self._tolerance()
        async with self.world() as world:
            fresh = _sign(world, hours=-tolerance * 0.7 / 3600)
            await _taken(world, BODY, fresh, "not older than the tolerance")
            old = _sign(world, hours=-(tolerance + 120) / 3600)
            await _refused(world, BODY, old, "older than the tolerance")

    @in_loop
    async def test_a_signature_from_the_future_is_refused(self) -> None:
        self.needs_webhooks()
        tolerance = self._tolerance()
        async with self.world() as world:
            ahead = _sign(world, hours=(tolerance + 120) / 3600)
            await _refused(world, BODY, ahead, "later than the tolerance")

    @in_loop
    async def test_both_keys_count_while_one_replaces_the_other(self) -> None:
        self.needs_webhooks()
        name = self._key()
        before, after = self.make(), self.make()
        keys = f"{before.env()[name]} {after.env()[name]}"
        async with self.world(variables={name: keys}) as world:
            for sim in (before, after):
                headers = sim.sign(new_id("msg"), utcnow(), BODY, False)
                await _taken(world, BODY, headers, f"by one of the two keys in {name}")
        async with self.world(variables={name: after.env()[name]}) as world:
            headers = before.sign(new_id("msg"), utcnow(), BODY, False)
            await _refused(world, BODY, headers, "by a key that was taken out")

    def test_without_a_good_key_no_webhook_is_taken(self) -> None:
        """`check` refuses it at the start, with the way to mend it. An empty key would verify
        whatever a stranger signs with an empty key."""
        self.needs_webhooks()
        name = self._key()
        for weak in ("", " ", ",", "x", "whsec_", "whsec_!!!!"):
            with self.settings(self.make(), {name: weak}) as ready:
                assert ready.webhook_problem, f"{name}={weak!r} is taken for a key"
                assert ready.verifier is None

    def _tolerance(self) -> float:
        if self.tolerance is None:
            pytest.skip("tolerance is None: the scheme signs no time")
        return self.tolerance

    def _key(self) -> str:
        if self.webhook_setting is None:
            pytest.skip("webhook_setting is not set: the keys are not in the environment")
        return self.webhook_setting


def _sign(world: World, *, forged: bool = False, hours: float = 0.0) -> dict[str, str]:
    at = utcnow() + timedelta(hours=hours)
    headers: Mapping[str, str] = world.sim.sign(new_id("msg"), at, BODY, forged)
    return dict(headers)


async def _taken(world: World, body: bytes, headers: Mapping[str, str], what: str) -> None:
    answer = await world.deliver(body, headers)
    assert answer.status_code == 202, f"a webhook {what} is refused: {answer.text}"


async def _refused(world: World, body: bytes, headers: Mapping[str, str], what: str) -> None:
    answer = await world.deliver(body, headers)
    assert answer.status_code == 401, f"a webhook {what} is answered {answer.status_code}"
    await _denied(world, body, {name.lower(): value for name, value in headers.items()}, what)


async def _denied(world: World, body: bytes, headers: Mapping[str, str], what: str) -> None:
    """`verify` itself raises `SignatureError`; the endpoint answers 401 whatever it raises."""
    verifier: Any = world.ready.verifier
    try:
        answer = verifier.verify(headers, body, utcnow())
        if inspect.isawaitable(answer):
            await answer
    except SignatureError:
        return
    except Exception as error:
        raise AssertionError(f"verify raises {type(error).__name__} for one {what}") from error
    raise AssertionError(f"verify admits one {what}")
