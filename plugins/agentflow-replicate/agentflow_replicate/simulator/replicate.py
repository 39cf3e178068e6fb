"""Replicate's HTTP API as far as the plugin and its users meet it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import RETRIES, Json, Simulator
from agentflow_replicate.simulator.order import NoSuchModel, Order
from agentflow_replicate.simulator.png import picture
from agentflow_replicate.simulator.prediction import Prediction
from agentflow_replicate.simulator.predictions import Predictions
from agentflow_replicate.simulator.script import Scripts
from agentflow_replicate.simulator.uploads import Upload

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

PAGE = 100
LONGEST_WAIT = 60

_WAIT = re.compile(r"wait(?:=(\d+))?")


class ReplicateSimulator(Simulator):
    """Predictions that take a second or two and give pictures; see `Script` for what else.

    `token` is the only one that is let in. `retention` is how many seconds after its end a
    prediction keeps its input, output and files. Of the predictions that ended, the last `most`
    are kept.
    """

    def __init__(
        self,
        *,
        token: str,
        secret: str | None = None,
        retention: float = 3600.0,
        retries: Sequence[float] = RETRIES,
        seed: int = 0,
        most: int = 20_000,
    ) -> None:
        super().__init__(secret=secret, retries=retries, seed=seed)
        self.token = token
        self.predictions = Predictions(self, retention=retention, most=most, seed=seed)
        self.scripts = Scripts(self, most)
        self.files: dict[str, Upload] = {}

    def routes(self) -> Sequence[BaseRoute]:
        one = "/v1/predictions/{id}"
        return [
            self._post("/v1/predictions", self._create_by("version")),
            self._post("/v1/models/{owner}/{name}/predictions", self._create_by("model")),
            self._post("/v1/deployments/{owner}/{name}/predictions", self._create_by("deployment")),
            self._post(f"{one}/cancel", self._cancel),
            self._post("/v1/files", self._upload),
            Route("/v1/predictions", self._known(self._list)),
            Route(one, self._known(self._get)),
            Route("/v1/files/{id}", self._known(self._file)),
            Route("/v1/webhooks/default/secret", self._known(self._secret)),
            Route("/outputs/{id}/{name}", self._output),
        ]

    def env(self) -> dict[str, str]:
        return {
            "REPLICATE_API_TOKEN": self.token,
            "REPLICATE_BASE_URL": self.url,
            "REPLICATE_WEBHOOK_SECRET": self.secret,
            "REPLICATE_OUTPUT_HOSTS": "127.0.0.1",
        }

    def forget(self) -> None:
        """From now on nothing is kept for any time."""
        self.predictions.retention = 0.0

    def throttled(self, seconds: float) -> Response:
        detail = f"Request was throttled. Your rate limit resets in ~{seconds:g}s."
        response = self.problem(429, "Too Many Requests", detail, retry_after=seconds)
        response.headers.update({"ratelimit-remaining": "0", "ratelimit-reset": f"{seconds:g}"})
        return response

    def _post(self, path: str, endpoint: Endpoint) -> Route:
        return Route(path, self._known(endpoint), methods=["POST"])

    def _known(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            if request.headers.get("authorization") == f"Bearer {self.token}":
                return await endpoint(request)
            self.stats.counts["unauthenticated"] += 1
            detail = "You did not pass a valid authentication token"
            return self.problem(401, "Unauthenticated", detail)

        return guarded

    def _missing(self) -> Response:
        return self.problem(404, "Not found", "The requested resource could not be found.")

    def _create_by(self, kind: str) -> Endpoint:
        async def create(request: Request) -> Response:
            self.stats.counts["creates"] += 1
            try:
                order = Order.read(kind, request.path_params, await request.body())
            except NoSuchModel:
                return self._missing()
            except ValueError as error:
                return self.problem(422, "Input validation failed", str(error))
            return await self._create(order, request.headers.get("prefer", ""))

        return create

    async def _create(self, order: Order, prefer: str) -> Response:
        hit = self.scripts.hit(order.script, order.input)

        async def create() -> Response:
            prediction = self.predictions.make(order, hit)
            if order.webhook:
                self.stats.created[order.webhook.partition("?")[0].rpartition("/")[2]] += 1
            answer = self.predictions.view(prediction)
            if prediction.outbox is not None and hit("webhook_before_response"):
                await prediction.outbox.settled.wait()
            elif await _waited(prediction, prefer):
                answer = self.predictions.view(prediction)
            return Json(answer, 201)

        return await self.faulty(create, hit)

    async def _get(self, request: Request) -> Response:
        self.stats.counts["fetches"] += 1
        prediction = self.predictions.get(request.path_params["id"])
        return Json(self.predictions.view(prediction)) if prediction else self._missing()

    async def _cancel(self, request: Request) -> Response:
        self.stats.counts["cancels"] += 1
        prediction = self.predictions.get(request.path_params["id"])
        if prediction is None:
            return self._missing()
        self.predictions.end(prediction, "canceled")
        return Json(self.predictions.view(prediction))

    async def _list(self, request: Request) -> Response:
        self.stats.counts["lists"] += 1
        cursor = request.query_params.get("cursor", "")
        before = int(cursor) if cursor.isdecimal() else self.predictions.made + 1
        page = self.predictions.newest(before, PAGE)
        more = len(page) == PAGE and page[-1].number > 1
        following = f"{self.url}/v1/predictions?cursor={page[-1].number}" if more else None
        results = [self.predictions.view(each) for each in page]
        return Json({"previous": None, "next": following, "results": results})

    async def _upload(self, request: Request) -> Response:
        self.stats.counts["uploads"] += 1
        file = Upload.read(request.headers.get("content-type", ""), await request.body())
        if file is None:
            return self.problem(422, "Input validation failed", "content is required")
        self.files[file.id] = file
        return Json(file.view(self.url), 201)

    async def _file(self, request: Request) -> Response:
        file = self.files.get(request.path_params["id"])
        return Json(file.view(self.url)) if file else self._missing()

    async def _output(self, request: Request) -> Response:
        """A file of a result, for whoever has its address. A token has no business here."""
        self.stats.counts["downloads"] += 1
        self.stats.counts["leaked_tokens"] += "authorization" in request.headers
        prediction = self.predictions.get(request.path_params["id"])
        if prediction is None or prediction.status != "succeeded":
            return self._missing()
        if prediction.older_than(self.predictions.retention):
            return self._missing()
        words = f"{prediction.order.input.get('prompt', '')} {request.path_params['name']}"
        return Response(picture(words), media_type="image/png")

    async def _secret(self, _: Request) -> Response:
        return Json({"key": self.secret})


async def _waited(prediction: Prediction, prefer: str) -> bool:
    """Honour `Prefer: wait=SECONDS`; true if the answer shall be what came of waiting."""
    if prediction.order.script.instant:
        return True
    asked = _WAIT.fullmatch(prefer)
    if asked is None:
        return False
    try:
        async with asyncio.timeout(min(int(asked[1] or LONGEST_WAIT), LONGEST_WAIT)):
            await prediction.ended.wait()
    except TimeoutError:
        pass
    return True
