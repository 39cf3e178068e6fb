"""A queue of models as fal's: the webhook's URL goes into the query, and what comes is signed by
Ed25519 with a key of a JWKS. Needs `cryptography`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import RETRIES, Json
from agentflow_http.simulator.declared import DeclaredSimulator

APP = "/acme/draw"
WORK = APP + "/requests/{id}"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "YPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


class QueueSimulator(DeclaredSimulator):
    """`stats.created` counts requests by their webhook's token, or by the prompt.

    `script` in a request says how long it takes and how it ends: `{"seconds": 0.1, "ends": "OK" |
    "ERROR" | "never", "thin": true}`; a thin webhook has no payload.
    """

    name = "queue"

    def __init__(self, *, key: str, retries: Sequence[float] = RETRIES, seed: int = 0) -> None:
        super().__init__(retries=retries, seed=seed)
        self.key = key
        self.requests: dict[str, dict[str, Any]] = {}
        self.keys_answer = 200
        """What the JWKS answers."""
        self._pair, self._other = (Ed25519PrivateKey.generate() for _ in range(2))

    def rotate(self) -> None:
        """Sign by another key from now on."""
        self._pair = Ed25519PrivateKey.generate()

    def service(self) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "private": True,
            "auth": {
                "kind": "header",
                "name": "authorization",
                "prefix": "Key ",
                "value": self.key,
            },
            "tasks": {
                "draw": {
                    "path": APP,
                    "work": {
                        "id": "/request_id",
                        "status_path": WORK + "/status",
                        "result_path": WORK,
                        "status": "/status",
                        "running": ["IN_QUEUE", "IN_PROGRESS"],
                        "succeeded": ["COMPLETED"],
                        "canceled": ["CANCELED"],
                        "artifacts": ["/images/*/url"],
                        "cancel": {"method": "PUT", "path": WORK + "/cancel"},
                        "poll_after": 0.1,
                    },
                }
            },
            "webhook": {
                "scheme": {"kind": "fal", "url": f"{self.url}/.well-known/jwks.json"},
                "id": "/request_id",
                "status": "/status",
                "succeeded": ["OK"],
                "failed": ["ERROR"],
                "result": "/payload",
                "error": "/error",
                "artifacts": ["/images/*/url"],
                "send": {"query": {"fal_webhook": "{url}"}},
            },
        }

    def sign(
        self,
        delivery_id: str,
        sent_at: datetime,
        body: bytes,
        forged: bool,
    ) -> Mapping[str, str]:
        id = orjson.loads(body).get("request_id", delivery_id)  # which is the delivery's
        stamp = str(int(sent_at.timestamp()))
        signed = f"{id}\nuser-1\n{stamp}\n{hashlib.sha256(body).hexdigest()}".encode()
        pair = self._other if forged else self._pair
        return {
            "X-Fal-Webhook-Request-Id": id,
            "X-Fal-Webhook-User-Id": "user-1",
            "X-Fal-Webhook-Timestamp": stamp,
            "X-Fal-Webhook-Signature": pair.sign(signed).hex(),
        }

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/.well-known/jwks.json", self._keys),
            Route(APP, self._create, methods=["POST"]),
            Route("/models", self._models),
            Route(WORK + "/status", self._status),
            Route(WORK + "/cancel", self._cancel, methods=["PUT"]),
            Route(WORK, self._result),
        ]

    async def _keys(self, _: Request) -> Response:
        self.stats.counts["jwks"] += 1
        x = base64.urlsafe_b64encode(self._pair.public_key().public_bytes_raw()).decode()
        key = {"kty": "OKP", "crv": "Ed25519", "x": x.rstrip("=")}
        return Json({"keys": [key]}, self.keys_answer)

    async def _models(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Key {self.key}":
            return Json({"detail": "Authentication is required"}, 401)

        async def listed() -> Response:
            return Json({"models": [APP]})

        return await self.faulty(listed, self.hit)

    def forget(self) -> None:
        self.requests.clear()

    async def _create(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Key {self.key}":
            return Json({"detail": "Authentication is required"}, 401)
        asked = orjson.loads(await request.body())
        url = request.query_params.get("fal_webhook")

        async def create() -> Response:
            id = str(uuid.uuid4())
            self.stats.created[url.rpartition("/")[2] if url else str(asked.get("prompt"))] += 1
            made = {"request_id": id, "status": "IN_QUEUE"}
            self.requests[id] = made
            living = self.spawn(self._live(made, asked.get("script") or {}, url))
            shown = {"request_id": id, "status": "IN_QUEUE"}
            if self.hit("webhook_before_response"):
                await asyncio.wait([living])
                await asyncio.sleep(0.1)
            return Json(shown)

        return await self.faulty(create, self.hit)

    def _found(self, request: Request) -> dict[str, Any] | None:
        if request.headers.get("authorization") != f"Key {self.key}":
            return None
        return self.requests.get(request.path_params["id"])

    async def _status(self, request: Request) -> Response:
        found = self._found(request)
        self.stats.counts["looks"] += 1
        if found is None:
            return Json({"detail": "Request not found"}, 404)
        return Json({"request_id": found["request_id"], "status": found["status"]})

    async def _result(self, request: Request) -> Response:
        found = self._found(request)
        if found is None or found["status"] != "COMPLETED":
            return Json({"detail": "Request not found"}, 404)
        if "error" in found:
            return Json({"detail": found["error"]}, 422)
        return Json(found["payload"])

    async def _cancel(self, request: Request) -> Response:
        found = self._found(request)
        if found is None or found["status"] == "COMPLETED":
            return Json({"status": "ALREADY_COMPLETED"}, 400)
        found["status"] = "CANCELED"
        return Json({"status": "CANCELLATION_REQUESTED"}, 202)

    async def _live(self, made: dict[str, Any], script: dict[str, Any], url: str | None) -> None:
        made["status"] = "IN_PROGRESS"
        await asyncio.sleep(script.get("seconds", 0.05))
        ends = "ERROR" if self.hit("fail") else script.get("ends", "OK")
        if ends == "never" or made["status"] == "CANCELED":
            return
        made["status"] = "COMPLETED"
        said: dict[str, Any] = {"request_id": made["request_id"], "status": ends, "payload": None}
        if ends == "ERROR":
            said["error"] = made["error"] = "The prompt was too odd."
        else:
            made["payload"] = {"images": [{"url": PIXEL, "content_type": "image/png"}], "seed": 7}
            said["payload"] = None if script.get("thin") else made["payload"]
            said |= {"payload_error": "too large"} if script.get("thin") else {}
        if url is not None:
            self.outbox(url, self.hit).post(orjson.dumps(said), last=True)
