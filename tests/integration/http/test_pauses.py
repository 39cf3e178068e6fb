"""Pauses over HTTP: seen, set and cleared by commands to the writer."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from support.web import World

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def pauses(api: World) -> dict[str, Any]:
    said = (await api.http.get("/v1/pauses")).json()
    assert said["next_cursor"] is None
    assert [p["target"] for p in said["items"]] == sorted(p["target"] for p in said["items"])
    return {pause["target"]: pause for pause in said["items"]}


async def pause(api: World, target: str, **more: Any) -> Any:
    answer = await api.http.post("/v1/pauses", json={"target": target, **more})
    assert answer.status_code == 202, answer.text
    assert answer.json()["id"].startswith("cmd_")
    await api.app.runtime.writer.settled()
    return answer.json()


async def resume(api: World, target: str) -> None:
    answer = await api.http.delete(f"/v1/pauses/{target}")
    assert answer.status_code == 202, answer.text
    await api.app.runtime.writer.settled()


async def test_what_is_paused_is_shown_until_it_is_resumed(api: World) -> None:
    assert await pauses(api) == {}
    before = api.app.runtime.clock.now()
    await pause(api, "bank", note="the account is empty")
    await pause(api, "acme.draw")
    shown = await pauses(api)
    assert set(shown) == {"acme.draw", "bank"}
    assert (shown["bank"]["note"], shown["acme.draw"]["note"]) == ("the account is empty", None)
    since = datetime.fromisoformat(shown["bank"]["created_at"])
    assert before - timedelta(seconds=1) < since < api.app.runtime.clock.now()
    await resume(api, "bank")
    assert set(await pauses(api)) == {"acme.draw"}
    await resume(api, "acme.draw")
    assert await pauses(api) == {}


async def test_a_second_pause_only_changes_the_note(api: World) -> None:
    await pause(api, "bank", note="first")
    before = (await pauses(api))["bank"]
    await pause(api, "bank", note="second")
    assert await pauses(api) == {"bank": {**before, "note": "second"}}
    await resume(api, "bank")


async def test_a_job_of_what_is_paused_waits_and_others_do_not(api: World) -> None:
    await pause(api, "bank")
    await pause(api, "acme.refuse")
    held = [await api.submit("bank.echo"), await api.submit("acme.refuse")]
    await api.finished("acme.echo")
    await api.app.runtime.writer.settled()
    assert [(await api.job(job["id"]))["status"] for job in held] == ["queued", "queued"]
    await resume(api, "bank")
    await resume(api, "acme.refuse")
    await api.app.runtime.writer.settled()
    assert (await api.until(held[0]["id"], "succeeded"))["attempt"] == 1
    assert (await api.until(held[1]["id"], "failed"))["attempt"] == 1


@pytest.mark.parametrize(
    "body",
    [{}, [], {"target": ""}, {"target": "nobody"}, {"target": "acme.fly"}, {"target": "acme."},
     {"target": None}, {"target": 7}, {"target": "ACME"}, {"target": "acme", "more": 1},
     {"target": "acme", "note": 7}, {"target": "acme", "note": "x" * 201},
     {"target": "acme", "note": "a\0b"}, {"target": "a" * 200}],
)  # fmt: skip
async def test_a_pause_of_nothing_there_is_refused(api: World, body: Any) -> None:
    letters = await api.count("agentflow_inbox")
    assert (await api.http.post("/v1/pauses", json=body)).status_code == 422
    assert await api.count("agentflow_inbox") == letters


@pytest.mark.parametrize("target", ["acme", "acme.draw", "nobody", "%00", "%ff", "'", "a" * 3000])
async def test_only_what_is_paused_can_be_resumed(api: World, target: str) -> None:
    letters = await api.count("agentflow_inbox")
    assert (await api.http.delete(f"/v1/pauses/{target}")).status_code == 404
    assert await api.count("agentflow_inbox") == letters


async def test_what_is_no_longer_installed_can_be_resumed(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pause(api, "tiny.draw")
    monkeypatch.delitem(api.app.runtime.catalogue.tasks, "tiny.draw")
    await resume(api, "tiny.draw")
    assert await pauses(api) == {}
