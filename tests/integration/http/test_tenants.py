"""Design rule 12: tenants never meet. An operation without its case here fails the first test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
import pytest
import pytest_asyncio
from support.keyed import bearer, new
from support.web import Fakes, World, world

from agentflow import AgentFlow
from agentflow.types import new_id, new_job_id
from agentflow.web.server import OPERATIONS

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Two:
    """Tenant `a` has one of everything; tenant `b` only a job. `ops` runs the server."""

    api: World
    a: dict[str, str]
    b: dict[str, str]
    ops: dict[str, str]
    ids: dict[str, str]

    async def ask(self, who: dict[str, str], method: str, path: str, **said: Any) -> httpx.Response:
        return await self.api.http.request(method, path, headers=who, **said)


Case: TypeAlias = Callable[[Two, str, str], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(
    tmp_path_factory: pytest.TempPathFactory, module_database: str | None
) -> AsyncIterator[Two]:
    app = AgentFlow(providers=Fakes().all(), plugins=[])

    @app.on("acme.refuse", "failed")
    async def breaks(event: Any, tx: Any) -> None:
        raise RuntimeError("the shop is closed")

    async with world(tmp_path_factory.mktemp("tenants"), app=app, require_keys=True) as api:
        a, b = bearer(await new("a", "admin")), bearer(await new("b", "admin"))
        ops = bearer(await new(scope="admin"))
        ids = await one_of_everything(api, a)
        api.http.headers = httpx.Headers(b)
        await api.submit("acme.echo", "b's own")
        api.http.headers = httpx.Headers()
        yield Two(api, a, b, ops, ids)


async def one_of_everything(api: World, who: dict[str, str]) -> dict[str, str]:
    api.http.headers = httpx.Headers(who)
    tagged = {"tags": ["secret-tag"], "entity": "shot:secret"}
    waiting = await api.waiting(**tagged)
    file = await api.finished("acme.file", {"url": "data:,of-a"})
    body = {"id": waiting["external_id"], "status": "half", "fraction": 0.5}
    delivery = (await api.deliver("acme", body)).json()["id"]
    await api.app.runtime.writer.settled()
    await api.finished("acme.refuse", "x")
    (run,) = (await api.http.get("/v1/handler-runs?status=parked")).json()["items"]
    api.http.headers = httpx.Headers()
    return {
        "waiting": waiting["id"],
        "file job": file["id"],
        "artifact": file["result"]["artifacts"][0]["id"],
        "delivery": delivery,
        "run": run["id"],
    }


# -- the cases ---------------------------------------------------------------------------------


def unseen(kind: str, unknown: str) -> Case:
    """Another tenant's id is answered as one that nobody has, and nothing happens to the thing."""

    async def case(two: Two, method: str, path: str) -> None:
        before = await rows_of(two)
        foreign = await two.ask(two.b, method, path.replace("{id}", two.ids[kind]))
        nobody = await two.ask(two.b, method, path.replace("{id}", unknown))
        assert (foreign.status_code, nobody.status_code) == (404, 404)
        assert foreign.text.replace(two.ids[kind], "ID") == nobody.text.replace(unknown, "ID")
        assert set(foreign.headers) == set(nobody.headers)
        assert await rows_of(two) == before
        own = await two.ask(two.a, method, path.replace("{id}", two.ids[kind]))
        assert own.status_code != 404, "its owner finds it"

    return case


async def rows_of(two: Two) -> Any:
    jobs = (
        'SELECT "id", "status", "version" FROM "agentflow_jobs" WHERE "tenant" = \'a\''
        " AND \"task\" <> 'acme.echo'"  # which may be under way
    )
    inbox = await two.api.count("agentflow_inbox")
    return (
        await two.api.rows(f'{jobs} ORDER BY "id"'),
        inbox,
        await two.api.count("agentflow_jobs"),
    )


async def nothing_foreign(two: Two, method: str, path: str) -> None:
    own = (await two.ask(two.a, method, path)).text
    theirs = (await two.ask(two.b, method, path)).text
    assert [id for id in two.ids.values() if id in own], "its owner sees it"
    assert [id for id in two.ids.values() if id in theirs] == []
    assert '"tenant":"a"' not in theirs


async def nothing_foreign_by_filter(two: Two, method: str, path: str) -> None:
    await nothing_foreign(two, method, path)
    for query in ("?tag=secret-tag", "?entity=shot:secret", "?status=waiting"):
        assert (await two.ask(two.a, method, path + query)).json()["items"]
        assert (await two.ask(two.b, method, path + query)).json()["items"] == []


async def keys_of_two(two: Two, method: str, path: str) -> None:
    """One idempotency key in two tenants makes two jobs, also when they come at once."""

    async def submit(who: dict[str, str], input: int) -> httpx.Response:
        headers = who | {"Idempotency-Key": "the-same"}
        return await two.ask(headers, method, path, json={"task": "acme.echo", "input": input})

    made = [await submit(two.a, 1), await submit(two.b, 2)]
    assert [m.status_code for m in made] == [201, 201]
    a, b = (m.json()["id"] for m in made)
    assert a != b
    again = await asyncio.gather(*(submit(two.a, 1) for _ in range(9)), submit(two.b, 2))
    assert [m.status_code for m in again] == [200] * 10
    assert [m.json()["id"] for m in again] == [a] * 9 + [b]


async def keys_of_two_in_batches(two: Two, method: str, path: str) -> None:
    ids = []
    for who in (two.a, two.b, two.a, two.b):
        said = {"jobs": [{"task": "acme.echo", "idempotency_key": "batched"}]}
        (item,) = (await two.ask(who, method, path, json=said)).json()["items"]
        ids.append(item["job"]["id"])
    assert ids[0] != ids[1]
    assert ids[:2] == ids[2:]


async def nothing_foreign_at_once(two: Two, method: str, path: str) -> None:
    """A filter finds no job of another tenant, and does nothing to it."""
    before = await rows_of(two)
    wanted: dict[str, str] = (
        {"task": "acme.file", "status": "succeeded"}
        if path.endswith("retry")
        else {"tag": "secret-tag"}
    )
    for who, found in ((two.a, True), (two.b, False)):
        said = {"filter": wanted, "dry_run": found}
        answer = await two.ask(who, method, path, json=said)
        assert (answer.status_code, bool(answer.json()["ids"])) == (200, found), answer.text
    await two.api.app.runtime.writer.settled()
    assert await rows_of(two) == before


async def nobodys(two: Two, method: str, path: str) -> None:
    """It is the same for every tenant."""
    if method == "GET":
        assert (await two.ask(two.a, method, path)).text == (
            await two.ask(two.b, method, path)
        ).text


async def operators(two: Two, method: str, path: str) -> None:
    """It is about the whole installation: an admin of one tenant is not enough."""
    filled = path.replace("{target}", "acme.echo").replace("{id}", "x")
    refused = await two.ask(two.b, method, filled)
    assert (refused.status_code, "default" in refused.text) == (403, True)
    assert (await two.ask(two.ops, method, filled)).status_code != 403


async def no_foreign_sums(two: Two, method: str, path: str) -> None:
    async def tasks(who: dict[str, str], more: str = "") -> set[str]:
        said = await two.ask(who, method, f"{path}?group_by=task,tenant{more}")
        return {item["group"]["task"] for item in said.json()["items"]}

    assert "acme.file" in await tasks(two.a)
    assert "acme.file" in await tasks(two.ops, "&tenant=*")
    assert "acme.file" not in await tasks(two.b)
    assert (await two.ask(two.b, method, f"{path}?tenant=a")).status_code == 403
    assert (await two.ask(two.b, method, f"{path}?tenant=*")).status_code == 403


async def no_foreign_budgets(two: Two, method: str, path: str) -> None:
    said = {"cap": "1000", "per_call": "1", "tenant": "a", "tag": "unused"}
    assert (await two.ask(two.ops, "POST", path, json=said)).status_code == 202
    await two.api.app.runtime.writer.settled()
    seen = [
        [budget["tenant"] for budget in (await two.ask(who, method, path)).json()["items"]]
        for who in (two.a, two.b, two.ops)
    ]
    assert seen == [["a"], [], ["a"]]


async def operators_from_elsewhere(two: Two, method: str, path: str) -> None:
    """On this machine it is open to all, so the request pretends to come by another name."""
    far = {"Host": "flow.example.com"}
    said = [await two.ask(who | far, method, path) for who in ({}, two.a, two.b, two.ops)]
    assert [s.status_code for s in said] == [403, 403, 403, 200]


JOB, RUN, LETTER = str(new_job_id()), new_id("run"), new_id("dlv")

CASES: dict[str, Case] = {
    "GET /healthz": nobodys,
    "GET /metrics": operators_from_elsewhere,
    "GET /readyz": nobodys,
    "GET /v1/artifacts/{id}": unseen("artifact", f"art_{'0' * 32}_0"),
    "GET /v1/budgets": no_foreign_budgets,
    "GET /v1/deliveries": nothing_foreign,
    "GET /v1/deliveries/{id}": unseen("delivery", LETTER),
    "GET /v1/events": nothing_foreign,
    "GET /v1/handler-runs": nothing_foreign,
    "GET /v1/jobs": nothing_foreign_by_filter,
    "GET /v1/jobs/{id}": unseen("waiting", JOB),
    "GET /v1/jobs/{id}/events": unseen("waiting", JOB),
    "GET /v1/pauses": operators,
    "GET /v1/providers": nobodys,
    "GET /v1/tasks": nobodys,
    "GET /v1/usage": no_foreign_sums,
    "POST /v1/budgets": operators,
    "POST /v1/deliveries/{id}/replay": unseen("delivery", LETTER),
    "POST /v1/handler-runs/{id}/retry": unseen("run", RUN),
    "POST /v1/jobs": keys_of_two,
    "POST /v1/jobs/batch": keys_of_two_in_batches,
    "POST /v1/jobs/cancel": nothing_foreign_at_once,
    "POST /v1/jobs/retry": nothing_foreign_at_once,
    "POST /v1/jobs/{id}/cancel": unseen("waiting", JOB),
    "POST /v1/jobs/{id}/retry": unseen("file job", JOB),
    "POST /v1/pauses": operators,
    "DELETE /v1/budgets/{id}": operators,
    "DELETE /v1/pauses/{target}": operators,
    "POST /webhooks/{provider}": nobodys,
    "POST /webhooks/{provider}/{token}": nobodys,
}


async def test_every_operation_has_its_case() -> None:
    assert {f"{o.method} {o.path}" for o in OPERATIONS} == CASES.keys()


@pytest.mark.parametrize("operation", CASES)
async def test_tenants_never_meet(two: Two, operation: str) -> None:
    method, path = operation.split()
    await CASES[operation](two, method, path)


async def test_a_live_stream_of_another_tenant_is_not_found(two: Two) -> None:
    path = f"/v1/jobs/{two.ids['waiting']}/events"
    live = two.b | {"Accept": "text/event-stream"}
    assert (await two.api.http.get(path, headers=live)).status_code == 404
    assert (await two.api.http.get(f"{path}?after=0", headers=live)).status_code == 404


async def test_a_cursor_of_another_tenant_leads_nowhere(two: Two) -> None:
    for path, kind in (("jobs", "waiting"), ("deliveries", "delivery"), ("handler-runs", "run")):
        page = await two.ask(two.b, "GET", f"/v1/{path}?cursor={two.ids[kind]}")
        assert [i for i in two.ids.values() if i in page.text] == []


# -- webhooks ----------------------------------------------------------------------------------


async def sees(two: Two, who: dict[str, str], delivery: str) -> bool:
    """Both by its id and in the list, or in neither way."""
    shown = (await two.ask(who, "GET", f"/v1/deliveries/{delivery}")).status_code == 200
    listed = delivery in (await two.ask(who, "GET", "/v1/deliveries?limit=200")).text
    assert shown is listed
    return shown


async def delivered(two: Two, path: str, said: Any) -> str:
    answer = await two.api.deliver(path, said)
    await two.api.app.runtime.writer.settled()
    return str(answer.json()["id"])


async def drawn(two: Two, who: dict[str, str], name: str) -> str:
    """A job that waits for its webhook."""
    said = {"task": "bank.draw", "input": {"name": name}}
    job = (await two.ask(who, "POST", "/v1/jobs", json=said)).json()["id"]
    while (await two.ask(who, "GET", f"/v1/jobs/{job}?wait=0.05")).json()["status"] != "waiting":
        pass
    return str(job)


async def test_a_delivery_is_its_jobs_tenants(two: Two) -> None:
    default = bearer(await new(scope="write"))
    await drawn(two, two.b, "of-b")
    delivery = await delivered(two, "bank", {"id": "of-b", "status": "half"})
    assert await sees(two, two.b, delivery)
    for who in (two.a, default, two.ops):
        assert not await sees(two, who, delivery)


async def test_a_delivery_for_nobody_is_the_operators_until_it_finds_its_job(two: Two) -> None:
    default = bearer(await new(scope="write"))
    delivery = await delivered(two, "bank", {"id": "of-nobody", "status": "half"})
    assert await sees(two, two.ops, delivery)
    for who in (two.a, two.b, default):
        assert not await sees(two, who, delivery)
    await drawn(two, two.a, "of-nobody")
    await two.api.app.runtime.writer.settled()
    assert await sees(two, two.a, delivery)
    assert not await sees(two, two.ops, delivery)


@pytest.mark.parametrize("beside", ["theirs", "nobody"])
async def test_a_delivery_that_speaks_of_others_too_is_the_operators(two: Two, beside: str) -> None:
    """Its body would tell one tenant of the other."""
    await drawn(two, two.a, f"mine-{beside}")
    if beside == "theirs":
        await drawn(two, two.b, f"{beside}-too")
    said = [{"id": f"mine-{beside}", "status": "done"}, {"id": f"{beside}-too", "status": "done"}]
    delivery = await delivered(two, "bank", said)
    for who in (two.a, two.b):
        assert not await sees(two, who, delivery)
    assert await sees(two, two.ops, delivery)
    await two.ask(two.ops, "POST", f"/v1/deliveries/{delivery}/replay")
    await two.api.app.runtime.writer.settled()
    assert not await sees(two, two.a, delivery), "nor when it is read again"
    found = (await two.ask(two.a, "GET", "/v1/jobs?limit=200")).json()["items"]
    assert [j["status"] for j in found if j["external_id"] == f"mine-{beside}"] == ["succeeded"]
