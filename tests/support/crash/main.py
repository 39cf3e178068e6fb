"""The application under the crash and the chaos test: a row of its own moves with each job."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from agentflow_replicate import provider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from agentflow import AgentFlow
from support.crash.models import Shot

CHECKS = int(os.environ.get("CRASH_CHECKS", "4"))

task = provider.tasks["replicate.predict"]
task.policy = replace(
    task.policy, poll_after=1.0, poll_after_webhook=2.0, poll_max=5.0, backoff=0.2, deadline=300.0,
    max_attempts=6, unknown_checks=CHECKS, cancel_checks=CHECKS,
)  # fmt: skip

QUICK = {
    "backoff": 0.2, "max_attempts": 6, "unknown_checks": CHECKS, "cancel_checks": CHECKS,
    "poll_after": 1.0, "poll_after_webhook": 2.0, "poll_max": 5.0,
}  # fmt: skip

app = AgentFlow(
    models=["support.crash.models"],
    policies=dict.fromkeys(os.environ.get("CRASH_TASKS", "").split(), QUICK),
)


async def create(request: Request) -> JSONResponse:
    """A row and its job, together or not at all."""
    said = await request.json()
    async with app.transaction() as tx:
        shot = await Shot.create(id=said["id"], using_db=tx)
        job = await app.submit(
            "replicate.predict", said["input"], entity=f"shot:{shot.id}", using_db=tx
        )
        await Shot.filter(id=shot.id).using_db(tx).update(job=job.id)
    return JSONResponse({"job": job.id})


async def shots(request: Request) -> JSONResponse:
    return JSONResponse(await Shot.all().values())


async def _shot(id: int, tx: Any) -> Shot:
    """Jobs submitted over HTTP have no row before they end."""
    known = await Shot.get_or_none(id=id, using_db=tx)
    return known or await Shot.create(id=id, using_db=tx)


def follow(kind: str) -> None:
    @app.on("replicate.predict", kind)
    async def handler(event: Any, tx: Any) -> None:
        shot = await _shot(int(event.job.entity_id), tx)
        files = event.result.artifacts if event.result else ()
        await (
            Shot.filter(id=shot.id)
            .using_db(tx)
            .update(
                status=kind,
                handled=shot.handled + 1,
                job=event.job.id,
                file=files[0].id if files else None,
            )
        )

    handler.__qualname__ = f"follow_{kind}"


for kind in ("succeeded", "failed", "canceled", "expired"):
    follow(kind)

asgi = Starlette(
    routes=[
        Route("/shots", create, methods=["POST"]),
        Route("/shots", shots, methods=["GET"]),
        Mount("/", app.asgi),
    ],
    lifespan=app.lifespan,
)
