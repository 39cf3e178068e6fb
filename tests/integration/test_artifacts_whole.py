"""From a provider's URL to a download, also when the bucket or the provider goes away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.buckets import Bucket
from support.proxy import Proxy
from support.scripted import Scripted, say, scripted
from support.serving import replicate_world
from support.web import serving, url_of

from agentflow import AgentFlow, Artifact, Policy, Provider, Result, Settings
from agentflow.app import standalone

CONTENT = os.urandom(6_000_000)


class Maker:
    """A provider whose one file lies at `url`; `life` is in seconds."""

    def __init__(self, url: str, life: float | None = None, **policy: Any) -> None:
        self.provider = Provider("maker")

        async def make(call: Any, input: Any) -> Result:
            end = None if life is None else datetime.now(UTC) + timedelta(seconds=life)
            return Result(artifacts=[Artifact(url, "out.bin", expires_at=end)])

        self.provider.task("make", policy=Policy(lease=0.4, **policy))(make)


@asynccontextmanager
async def site(
    data: Path, maker: Maker, source: Scripted, **options: Any
) -> AsyncIterator[tuple[AgentFlow, httpx.AsyncClient]]:
    """An application behind HTTP, allowed to fetch from the source."""
    app = AgentFlow(providers=[maker.provider], plugins=[])
    allowed = frozenset({source.url.removeprefix("http://")})
    app._settings = Settings(data_dir=data, grace=0.2, allow_downloads=allowed, **options)
    async with (
        serving(standalone(app)) as server,
        httpx.AsyncClient(base_url=url_of(server), timeout=30) as http,
    ):
        yield app, http


async def until(http: httpx.AsyncClient, id: str, *statuses: str, seconds: float = 30) -> Any:
    async with asyncio.timeout(seconds):
        while (job := (await http.get(f"/v1/jobs/{id}")).json())["status"] not in statuses:
            await asyncio.sleep(0.02)
    return job


async def collecting(http: httpx.AsyncClient, id: str) -> Any:
    async with asyncio.timeout(30):
        while (job := (await http.get(f"/v1/jobs/{id}")).json())["phase"] != "collecting":
            await asyncio.sleep(0.02)
    return job


async def numbers(http: httpx.AsyncClient) -> dict[tuple[str, str | None], float]:
    """Samples about files, by name and status."""
    text = (await http.get("/metrics")).text
    return {
        (sample.name.removeprefix("agentflow_"), sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "artifact" in sample.name or "collecting" in sample.name
    }


async def submit(http: httpx.AsyncClient) -> str:
    answer = await http.post("/v1/jobs", json={"task": "maker.make", "input": {}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_a_prediction_ends_with_its_file_in_the_bucket(
    tmp_path: Path, bucket: Bucket
) -> None:
    async with replicate_world(tmp_path, artifacts_url=bucket.url) as world:
        order = {"model": "acme/painter", "input": {"prompt": "a lighthouse"}}
        task = {"task": "replicate.predict", "input": order}
        made = (await world.http.post("/v1/jobs", json=task)).json()
        job = await until(world.http, made["id"], "succeeded", "failed")
        (file,) = job["result"]["artifacts"]
        answer = await world.http.get(file["url"])
        part = await world.http.get(file["url"], headers={"Range": "bytes=1-3"})
    digits = file["id"].split("_")[1]
    assert bucket.keys() == [f"{digits[:8]}/{digits}/0"]
    assert (answer.status_code, len(answer.content)) == (200, file["size"])
    assert answer.content.startswith(b"\x89PNG")
    assert (part.status_code, part.content) == (206, b"PNG")
    left = datetime.fromisoformat(file["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1)


async def test_files_wait_for_a_bucket_that_is_away_and_downloads_say_later(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy("127.0.0.1", int(bucket.endpoint.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        with scripted() as source:
            source(say(200, CONTENT))
            maker = Maker(f"{source.url}/out.bin", life=600)
            async with site(tmp_path, maker, source, artifacts_url=bucket.url) as (_, http):
                before = await until(http, await submit(http), "succeeded", "failed")
                proxy.cut()
                there = before["result"]["artifacts"][0]["url"]
                away = await http.get(there)
                id = await submit(http)
                waits = await collecting(http, id)
                (pending,) = waits["result"]["artifacts"]
                seen = await numbers(http)
                proxy.heal()
                job = await until(http, id, "succeeded", "failed")
                answer = await http.get(job["result"]["artifacts"][0]["url"])
                after = await numbers(http)
    assert (away.status_code, away.headers["retry-after"]) == (503, "2")
    assert bucket.endpoint not in away.text
    assert (waits["status"], pending["status"]) == ("waiting", "pending")
    assert pending["expires_at"] is not None
    assert seen["collecting_jobs", None] == 1
    assert (job["status"], job["reason"]) == ("succeeded", "succeeded")
    assert answer.content == CONTENT
    assert after["artifacts_total", "stored"] == 2
    assert after["artifact_bytes_total", None] == 2 * len(CONTENT)


async def test_a_file_that_expires_before_it_can_be_copied_is_lost_then_and_not_before(
    tmp_path: Path,
) -> None:
    """However few tries the policy grants files that live for ever."""
    with scripted() as source:
        source(say(503, b"later"))
        maker = Maker(f"{source.url}/out.bin", life=4.0, collect_checks=1)
        async with site(tmp_path, maker, source) as (_, http):
            id = await submit(http)
            (pending,) = (await collecting(http, id))["result"]["artifacts"]
            job = await until(http, id, "succeeded", "failed")
            gone = await http.get(f"/v1/artifacts/{pending['id']}")
            found = await numbers(http)
    (file,) = job["result"]["artifacts"]
    assert (job["reason"], file["status"]) == ("artifacts_lost", "lost")
    assert file["note"] == "expired at the provider before it could be copied"
    end = datetime.fromisoformat(file["expires_at"])
    assert end == datetime.fromisoformat(pending["expires_at"])
    assert datetime.fromisoformat(job["finished_at"]) >= end
    assert len(source.seen) >= 2
    assert gone.status_code == 404
    assert found["artifacts_total", "lost"] == 1


async def test_a_file_that_comes_back_in_time_is_kept_however_often_it_was_tried(
    tmp_path: Path,
) -> None:
    with scripted() as source:
        source(*[say(503, b"later")] * 2, say(200, b"at last"))
        maker = Maker(f"{source.url}/out.bin", life=120.0, collect_checks=1)
        async with site(tmp_path, maker, source) as (_, http):
            job = await until(http, await submit(http), "succeeded", "failed")
            answer = await http.get(job["result"]["artifacts"][0]["url"])
    assert (job["reason"], answer.content) == ("succeeded", b"at last")
    assert len(source.seen) == 3
