"""The settings of the Event Webhook, as SendGrid's API has them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import Json

if TYPE_CHECKING:
    from agentflow_sendgrid.simulator.sendgrid import SendGridSimulator


class Webhooks:
    """`all` by id. They are told of mails like `webhook_url`, once they are signed: it is the key
    pair of the simulator that signs them all."""

    def __init__(self, sim: SendGridSimulator) -> None:
        self.sim = sim
        self.all: dict[str, dict[str, Any]] = {}

    def routes(self) -> Sequence[BaseRoute]:
        base = "/v3/user/webhooks/event"
        return [
            Route(f"{base}/settings/all", self._list),
            Route(f"{base}/settings", self._create, methods=["POST"]),
            Route(f"{base}/settings/signed/{{id}}", self._sign, methods=["PATCH"]),
            Route(f"{base}/settings/{{id}}", self._change, methods=["PATCH"]),
            Route(f"{base}/test", self._test, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        if (refused := self.sim.stranger(request)) is not None:
            return refused
        return Json({"max_allowed": 5, "webhooks": list(self.all.values())})

    async def _create(self, request: Request) -> Response:
        if (refused := self.sim.stranger(request)) is not None:
            return refused
        made = {"id": str(uuid.uuid4()), **orjson.loads(await request.body())}
        self.all[made["id"]] = made
        return Json(made, 201)

    async def _change(self, request: Request) -> Response:
        return await self._one(request, orjson.loads(await request.body()))

    async def _sign(self, request: Request) -> Response:
        key = self.sim.public_key if orjson.loads(await request.body())["enabled"] else ""
        return await self._one(request, {"public_key": key})

    async def _one(self, request: Request, changes: dict[str, Any]) -> Response:
        if (refused := self.sim.stranger(request)) is not None:
            return refused
        found = self.all.get(request.path_params["id"])
        if found is None:
            return self.sim.problem(404, "id", "not found")
        found.update(changes)
        return Json(found)

    async def _test(self, request: Request) -> Response:
        if (refused := self.sim.stranger(request)) is not None:
            return refused
        url = orjson.loads(await request.body())["url"]
        sample = {"email": "example@test.com", "timestamp": int(time.time()), "event": "processed"}
        sample |= {"sg_event_id": uuid.uuid4().hex, "sg_message_id": "sample"}
        body = orjson.dumps([sample]) + b"\r\n"
        self.sim.outbox(url, self.sim.hit).post(body, last=True)
        return Response(status_code=204)
