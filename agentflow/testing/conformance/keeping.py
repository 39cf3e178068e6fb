"""Checks that no secret leaves the settings: not by logs, errors, rows, files or other hosts."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from structlog.testing import capture_logs

from agentflow.testing.conformance.loop import in_loop
from agentflow.testing.conformance.order import Order
from agentflow.testing.conformance.subject import Subject
from agentflow.testing.conformance.world import World, dumped
from agentflow.testing.conformance.world import world as world_with


class Keeping(Subject):
    @in_loop
    async def test_no_secret_is_stored_shown_or_logged(
        self,
        order: Order,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Jobs that end well and jobs that fail, with every logger at its most talkative. The keys
        are looked for in logs, answers, history, and in each file of the data directory."""
        sim = self.make()
        secrets = self.secrets(sim)
        if not secrets:
            pytest.skip("the settings hold no secret")
        caplog.set_level(logging.DEBUG)
        with capture_logs() as logs:
            async with world_with(self.provided, sim) as world:
                shown = await self._talk(world, order)
                files = await asyncio.to_thread(_bytes_in, world)
        said = [dumped(logs), caplog.text, *capfd.readouterr(), *shown]
        for name, value in secrets.items():
            for each in {value, *value.split(",")}:
                assert not any(each in text for text in said), f"{name} is logged or shown"
                found = [path for path, content in files if each.encode() in content]
                assert not found, f"{name} is stored in {found}"

    @in_loop
    async def test_an_error_shows_no_key(self, order: Order) -> None:
        """The message and the detail of a failure are shown to clients."""
        sim = self.make()
        secrets = self.secrets(sim)
        async with self.attempts(sim) as attempts:
            for status in (401, 400, 500):
                sim.faults.update(error_before=1, error_status=status)
                sim.complaint = " ".join(secrets.values())
                outcome: Any = await attempts.make(self.task(order), order.input)
                shown = dumped(outcome)
                leaked = [name for name, value in secrets.items() if value in shown]
                assert not leaked, f"an error that repeats {', '.join(leaked)} is shown as it is"

    async def _talk(self, world: World, order: Order) -> list[str]:
        """What the API shows of a job that succeeds and of one that is refused."""
        shown = []
        for status in (None, 401):
            if status is not None:
                world.sim.faults.update(error_before=1, error_status=status)
            job = await world.run(order.task, order.input)
            shown += [dumped(job), dumped(await world.history(job["id"]))]
        for path in ("/v1/providers", "/v1/tasks", "/v1/deliveries", "/readyz", "/metrics"):
            shown.append((await world.http.get(path)).text)
        return shown


def _bytes_in(world: World) -> list[tuple[str, bytes]]:
    return [
        (str(path.relative_to(world.folder)), path.read_bytes())
        for path in world.folder.rglob("*")
        if path.is_file()
    ]
