"""The example `examples/storyboard`, as an application's own tests would have it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from agentflow_replicate.simulator import env, simulator
from support.servers import free_port
from support.serving import http_server

from agentflow import Artifact, Canceled, ContentRejected, Failed, Result, Succeeded, testing
from agentflow.testing.application import AppUnderTest
from agentflow.webhooks.signatures import new_secret

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from storyboard.main import api, app  # noqa: E402 - found by the line above
from storyboard.models import Image, Storyboard, Video  # noqa: E402


@pytest.fixture
async def t() -> AsyncIterator[AppUnderTest]:
    async with testing.app(app) as t:
        yield t


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api), base_url="http://storyboard.test"
    ) as http:
        yield http


async def make(http: httpx.AsyncClient, *prompts: str) -> dict[str, Any]:
    made = await http.post("/storyboards", json={"title": "A walk", "prompts": prompts})
    assert made.status_code == 201
    board: dict[str, Any] = made.json()
    return board


def picture(name: str) -> Succeeded:
    return Succeeded(Result(artifacts=[Artifact(f"https://replicate.test/{name}.png")]))


async def entities(t: AppUnderTest) -> list[str]:
    return [job["entity"] for job in await t.jobs()]


async def test_all_images_ready_start_the_video_once(
    t: AppUnderTest, http: httpx.AsyncClient
) -> None:
    await make(http, "a door", "a road", "a hill")
    door, road, hill = await t.jobs()
    await t.deliver(hill, picture("hill"))
    await t.deliver(door, picture("door"))
    assert await Video.all().count() == 0
    await t.deliver(road, picture("road"))
    *_, video = await t.jobs()
    assert video["status"] == "waiting"
    files = [image.file for image in await Image.all().order_by("id")]
    assert video["input"]["input"] == {"prompt": "A walk", "images": files}
    await t.deliver(video, picture("video"))
    board = (await http.get("/storyboards/1")).json()
    shown = await http.get(board["video"]["url"])
    assert shown.content == b"the file at https://replicate.test/video.png"
    assert await entities(t) == ["image:1", "image:2", "image:3", "video:1"]


async def test_repeated_webhooks_start_nothing_more(
    t: AppUnderTest, http: httpx.AsyncClient
) -> None:
    await make(http, "a door")
    (door,) = await t.jobs()
    for _ in range(3):
        await t.deliver(door, picture("door"))
    assert await entities(t) == ["image:1", "video:1"]


async def test_a_failed_image_shows_its_problem_and_can_be_made_again(
    t: AppUnderTest, http: httpx.AsyncClient
) -> None:
    await make(http, "a door", "something rude")
    door, rude = await t.jobs()
    await t.deliver(door, picture("door"))
    await t.deliver(rude, Failed(ContentRejected("not that")))
    board = (await http.get("/storyboards/1")).json()
    assert [image["problem"] for image in board["images"]] == [None, "not that"]
    assert board["video"] is None

    (found,) = (await http.get("/agentflow/v1/jobs", params={"entity": "image:2"})).json()["items"]
    again = await http.post(f"{found['urls']['self']}/retry")
    assert again.status_code == 201
    await t.settle()
    await t.deliver(again.json(), picture("polite"))
    board = (await http.get("/storyboards/1")).json()
    assert [image["problem"] for image in board["images"]] == [None, None]
    assert await entities(t) == ["image:1", "image:2", "image:2", "video:1"]


async def test_an_image_made_once_more_does_not_start_a_second_video(
    t: AppUnderTest, http: httpx.AsyncClient
) -> None:
    await make(http, "a door")
    (door,) = await t.jobs()
    await t.deliver(door, picture("door"))
    again = await http.post(f"/agentflow/v1/jobs/{door['id']}/retry")
    await t.settle()
    await t.deliver(again.json(), picture("another"))
    assert await entities(t) == ["image:1", "video:1", "image:1"]


async def test_an_image_nobody_delivers_expires_and_a_canceled_one_says_so(
    t: AppUnderTest, http: httpx.AsyncClient
) -> None:
    await make(http, "a door", "a road")
    door, _ = await t.jobs()
    await t.deliver(door, Canceled())
    await t.advance(2 * 3600)
    board = (await http.get("/storyboards/1")).json()
    assert board["images"][0]["problem"] == "canceled"
    assert "deadline" in board["images"][1]["problem"]


async def test_a_storyboard_that_cannot_be_stored_leaves_no_job(
    t: AppUnderTest, http: httpx.AsyncClient
) -> None:
    with pytest.raises(Exception, match="title"):  # the transport hands the 500 on
        await http.post("/storyboards", json={"title": "x" * 201, "prompts": ["a door"]})
    assert await t.jobs() == []
    assert await Storyboard.all().count() == 0


async def test_it_works_with_the_replicate_plugin_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    async with simulator(new_secret(), "r8_test").serve() as sim:
        variables = {
            **env(sim),
            "AGENTFLOW_DATA_DIR": str(tmp_path),
            "AGENTFLOW_PUBLIC_URL": f"{base}/agentflow",
            "AGENTFLOW_ALLOW_DOWNLOADS": f'["{urlsplit(sim.url).netloc}"]',
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        async with http_server(api, port), httpx.AsyncClient(base_url=base) as http:
            await make(http, "a door", "a road")
            async with asyncio.timeout(20):
                while True:
                    board = (await http.get("/storyboards/1")).json()
                    if board["video"] and board["video"]["url"]:
                        break
                    await asyncio.sleep(0.05)
            for shown in (*board["images"], board["video"]):
                assert shown["problem"] is None
                assert (await http.get(shown["url"])).content.startswith(b"\x89PNG")
            assert sim.stats.counts["creates"] == 3
            assert sim.stats.counts["uploads"] == 2, "the video was made of the two images"
            jobs = (await http.get("/agentflow/v1/jobs")).json()["items"]
            assert [job["entity"] for job in jobs] == ["video:1", "image:2", "image:1"]
            history = (await http.get(jobs[0]["urls"]["events"])).json()["items"]
            assert "webhook" in {entry["source"] for entry in history}
