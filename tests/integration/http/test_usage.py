"""Usage and budgets over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from support.web import World

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def budgets(api: World) -> dict[str, Any]:
    said = (await api.http.get("/v1/budgets")).json()
    return {each["tag"]: each for each in said["items"]}


async def set_budget(api: World, **said: Any) -> None:
    answer = await api.http.post("/v1/budgets", json={"cap": "12.50", "per_call": "1", **said})
    assert answer.status_code == 202, answer.text
    assert answer.json()["status"] == "applied"
    await api.app.runtime.writer.settled()


async def test_a_budget_is_shown_until_it_is_removed(api: World) -> None:
    await set_budget(api, tag="film", note="the pilot")
    shown = (await budgets(api))["film"]
    assert (shown["cap"], shown["spent"], shown["left"]) == ("12.5", "0", "12.5")
    assert (shown["period"], shown["currency"], shown["note"]) == ("month", "USD", "the pilot")
    await set_budget(api, tag="film", cap="20")
    again = (await budgets(api))["film"]
    assert (again["cap"], again["id"], again["note"]) == ("20", shown["id"], None)
    answer = await api.http.delete(f"/v1/budgets/{shown['id']}")
    assert answer.status_code == 202
    await api.app.runtime.writer.settled()
    assert await budgets(api) == {}
    assert (await api.http.delete(f"/v1/budgets/{shown['id']}")).status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"cap": "-1"},
        {"cap": 1},
        {"cap": "1e5"},
        {"cap": "999999999"},
        {"per_call": "much"},
        {"per_call": None},
        {"currency": "usd"},
        {"period": "week"},
        {"tag": "no spaces"},
        {"tag": ""},
        {"tenant": "\x00"},
        {"note": "\x00"},
        {"more": 1},
    ],
)
async def test_what_is_no_budget_is_refused(api: World, wrong: dict[str, Any]) -> None:
    answer = await api.http.post("/v1/budgets", json={"cap": "1", "per_call": "1", **wrong})
    assert answer.status_code == 422, answer.text
    assert await budgets(api) == {}


async def test_usage_is_summed_as_asked(api: World) -> None:
    whole = (await api.http.get("/v1/usage")).json()
    assert [item["group"] for item in whole["items"]] == [{}]
    asked = {"group_by": "task,day", "since": "2026-01-01T00:00:00Z", "tenant": "*"}
    answer = await api.http.get("/v1/usage", params=asked)
    assert answer.status_code == 200
    for item in answer.json()["items"]:
        assert set(item["group"]) == {"task", "day"}


@pytest.mark.parametrize(
    "wrong", [{"group_by": "color"}, {"since": "yesterday"}, {"group_by": ","}]
)
async def test_a_sum_of_nothing_there_is_refused(api: World, wrong: dict[str, str]) -> None:
    assert (await api.http.get("/v1/usage", params=wrong)).status_code == 422
