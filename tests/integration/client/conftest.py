"""A server that misbehaves on purpose, and a client that asks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.scripted import Scripted, scripted

from agentflow.client import Client, retries


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    with scripted() as made:
        yield made


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url, repeats=4) as made:
        yield made
