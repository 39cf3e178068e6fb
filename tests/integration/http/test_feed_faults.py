"""The live feed when things end around it. Each test has a server of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.contract import EVENTS
from support.patience import PATIENCE
from support.web import serving, url_of, world

from agentflow import AgentFlow
from agentflow.errors import StoreUnavailable
from agentflow.web import feed

LIVE = {"Accept": EVENTS}


async def test_a_stop_ends_live_feeds_in_good_order(tmp_path: Path) -> None:
    async with httpx.AsyncClient(timeout=PATIENCE) as http:
        async with world(tmp_path) as api:
            await api.finished()
            watchers = api.app.runtime.bus.watchers
            before = len(watchers)
            url = f"{api.url}/v1/events"
            streams = [asyncio.create_task(http.get(url, headers=LIVE)) for _ in range(3)]
            async with asyncio.timeout(PATIENCE):
                while len(watchers) < before + 3:
                    await asyncio.sleep(0.005)
        for answer in await asyncio.gather(*streams):
            assert answer.text.count("data: ") == 3
            assert answer.text.endswith("\r\n\r\n")


async def test_a_store_that_goes_away_ends_a_live_feed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*args: Any) -> Any:
        raise StoreUnavailable

    async with world(tmp_path) as api:
        job = await api.finished()
        async with api.http.stream("GET", "/v1/events", headers=LIVE) as live:
            lines = live.aiter_lines()
            await anext(lines)
            monkeypatch.setattr(feed, "stretch", away)
            api.app.runtime.bus.told([job["id"]])
            async with asyncio.timeout(PATIENCE):
                assert [line async for line in lines][-1] == ""
        assert (await api.http.get("/v1/events")).status_code == 503


async def test_before_the_start_there_is_no_feed() -> None:
    asgi = AgentFlow(plugins=[]).asgi
    async with serving(asgi) as server, httpx.AsyncClient(base_url=url_of(server)) as http:
        for headers in ({}, LIVE):
            assert (await http.get("/v1/events", headers=headers)).status_code == 503
