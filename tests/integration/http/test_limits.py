"""Limits on the wire: how often, how much at once, how large."""

from __future__ import annotations

from pathlib import Path

from support.keyed import bearer, new
from support.web import world

ECHO = {"task": "acme.echo"}


async def test_a_caller_that_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with world(tmp_path, require_keys=True, rate_limit="3/hour") as api:
        key, other = bearer(await new()), bearer(await new())
        said = [(await api.http.get("/v1/jobs", headers=key)).status_code for _ in range(5)]
        assert said == [200, 200, 200, 429, 429]
        refused = await api.http.post("/v1/jobs", json=ECHO, headers=key)
        assert (refused.status_code, refused.json()["title"]) == (429, "Too many requests")
        assert 0 < int(refused.headers["retry-after"]) <= 3600
        assert await api.count("agentflow_jobs") == 0
        assert (await api.http.get("/v1/jobs", headers=other)).status_code == 200
        for _ in range(5):
            assert (await api.deliver("bank", {"status": "x"})).status_code == 202
            assert (await api.http.get("/healthz")).status_code == 200


async def test_a_scope_too_small_counts_too(tmp_path: Path) -> None:
    async with world(tmp_path, require_keys=True, rate_limit="2/hour") as api:
        key = bearer(await new(scope="read"))
        said = [
            (await api.http.post("/v1/jobs", json=ECHO, headers=key)).status_code for _ in range(3)
        ]
        assert said == [403, 403, 429]


async def test_without_keys_an_address_is_counted(tmp_path: Path) -> None:
    async with world(tmp_path, rate_limit="2/hour") as api:
        said = [(await api.http.get("/v1/jobs")).status_code for _ in range(3)]
        assert said == [200, 200, 429]


async def test_a_full_backlog_takes_no_more_of_this_tenant(tmp_path: Path) -> None:
    async with world(tmp_path, require_keys=True, max_backlog=2) as api:
        backlog = api.app.runtime.context.backlog
        key, other = bearer(await new("a")), bearer(await new("b"))
        later = {"task": "acme.echo", "delay": 1000}
        jobs = []
        for _ in range(2):
            made = await api.http.post("/v1/jobs", json=later, headers=key)
            jobs.append(made.json()["id"])
        backlog._until.clear()  # a second later
        refused = await api.http.post("/v1/jobs", json=later, headers=key)
        assert (refused.status_code, refused.json()["title"]) == (503, "Unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert await api.count("agentflow_jobs") == 2
        assert (await api.http.get("/v1/jobs", headers=key)).status_code == 200
        assert (await api.http.post("/v1/jobs", json=later, headers=other)).status_code == 201
        canceled = await api.http.post(f"/v1/jobs/{jobs[0]}/cancel", headers=key)
        assert canceled.status_code == 202, "what makes room is let in"
        await api.app.runtime.writer.settled()
        backlog._until.clear()
        assert (await api.http.post("/v1/jobs", json=later, headers=key)).status_code == 201


async def test_running_and_waiting_jobs_are_no_backlog(tmp_path: Path) -> None:
    async with world(tmp_path, max_backlog=1) as api:
        await api.waiting()
        await api.finished()
        api.app.runtime.context.backlog._until.clear()
        await api.submit()


async def test_a_body_that_is_too_large_is_refused_also_of_a_good_key(tmp_path: Path) -> None:
    async with world(tmp_path, require_keys=True) as api:
        key = bearer(await new())
        answer = await api.http.post("/v1/jobs", content=b"x" * 2_000_000, headers=key)
        assert answer.status_code == 413
        stranger = await api.http.post("/v1/jobs", content=b"x" * 2_000_000)
        assert stranger.status_code == 401
