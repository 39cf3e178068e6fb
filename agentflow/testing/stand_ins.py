"""Stand-ins for the providers of an application under test: no network, no keys, no plugins."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import httpx

from agentflow.core.events import Accepted, Canceled, load_event
from agentflow.core.providers import NAME, TASK_NAME, Delivery, Fact, Provider, Task, Verified
from agentflow.plugins.catalogue import Catalogue, Ready
from agentflow.worker.call import Call

MARK = "x-agentflow-testing"
"""The header of a delivery that says a fact in our words rather than the provider's."""


class StandIns(Catalogue):
    """The application's own tasks as they are, and a stand-in for every other provider.

    Providers described by the application keep their tasks' inputs and policies, and their
    parsers. Others exist as soon as somebody mentions one of their tasks, and take any input.
    `scripts` holds what the next calls of a task come to.
    """

    def __init__(self, described: Iterable[Provider], public_url: str) -> None:
        self.scripts: defaultdict[str, deque[Any]] = defaultdict(deque)
        self.on_task: Callable[[str], None] = _ignore
        self._mentioned: set[str] = set()
        providers = [p if p.local else self._double(p) for p in described]
        super().__init__([], providers, public_url)

    def task(self, name: str) -> Task[Any]:
        if name not in self.tasks:
            self._invent(name)
        return super().task(name)

    def provider(self, name: str) -> Ready:
        self.mention(name)
        return super().provider(name)

    def adjust(self, policies: Mapping[str, Mapping[str, Any]]) -> None:
        for name in policies.keys() - self.tasks.keys():
            self._invent(name)
        super().adjust(policies)

    def mention(self, group: str) -> None:
        """See that there is a provider of this name, if it is one."""
        if group not in self.providers and NAME.fullmatch(group):
            self.add(self._double(Provider(group)))
            self._mentioned.add(group)

    def _invent(self, name: str) -> None:
        """Nobody described the provider, so that it may well have such a task."""
        group, _, rest = name.partition(".")
        self.mention(group)
        if group in self._mentioned and TASK_NAME.fullmatch(name):
            self.tasks[name] = self._play(self.providers[group].provider, rest)
            self.on_task(name)

    def _double(self, original: Provider) -> Provider:
        double = Provider(original.name, webhooks="per_request", scheme=Trusting())
        double.type_of(original.typer)
        double.parse(_parser(original))
        for task in original.tasks.values():
            self._play(double, task.name.partition(".")[2], input=task.input, policy=task.policy)
        return double

    def _play(self, provider: Provider, name: str, **described: Any) -> Task[Any]:
        full = f"{provider.name}.{name}"

        async def call(call: Call, input: Any) -> Any:
            del input
            if not self.scripts[full]:
                return Accepted(f"{full}:{call.job_id}:{call.attempt}")
            outcome = self.scripts[full].popleft()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def cancel(call: Call, external_id: str) -> Canceled:
            del call
            return Canceled(external_id=external_id)

        task = provider.task(name, **described)(call)
        task.cancel(cancel)
        return task


class Trusting:
    """A signature scheme that believes everybody."""

    def verifier(self, settings: Any) -> Trusting:
        del settings
        return self

    def check(self) -> None: ...

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        del headers, body, now
        return Verified()


class Files:
    """What the URLs of results lead to: given bytes, 404 for None, else a few bytes of text."""

    def __init__(self) -> None:
        self.given: dict[str, bytes | None] = {}

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        content = self.given.get(url, f"the file at {url}".encode())
        if content is None:
            return httpx.Response(404)
        return httpx.Response(200, stream=httpx.ByteStream(content))


def _parser(original: Provider) -> Callable[[Delivery], list[Fact]]:
    def parse(delivery: Delivery) -> list[Fact]:
        if MARK in delivery.headers:
            said = delivery.json
            event: Any = load_event(said["type"], said["fields"])
            return [Fact(event, said["external_id"])]
        return list(original.parser(delivery)) if original.parser else []

    return parse


def _ignore(name: str) -> None:
    del name
