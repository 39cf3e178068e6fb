"""fal's queue on this machine: real HTTP, webhooks signed by Ed25519, and faults on demand."""

import asyncio
import base64
import hashlib
from datetime import datetime
from typing import Any
from uuid import uuid4

import orjson
from agentflow.testing.simulator import Json, Simulator
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
USER = "user-of-the-simulator"
CANCELED = {"detail": "Request cancelled by client", "error_type": "client_cancelled"}
REASONS: dict[str, tuple[int, dict[str, Any]]] = {
    "timeout": (504, {"detail": "Request timed out", "error_type": "request_timeout"}),
    "crash": (500, {"detail": "Runner failed", "error_type": "runner_server_error"}),
    "reject": (
        422,
        {"detail": [{"loc": ["body", "prompt"], "msg": "flagged by a content checker",
                     "type": "content_policy_violation"}]},
    ),
    "empty": (422, {"detail": [{"loc": ["body", "prompt"], "msg": "field required",
                                "type": "value_error.missing"}]}),
    "odd": (500, {"detail": "It broke."}),
}  # fmt: skip


class FalSimulator(Simulator):
    """What becomes of a request is said by its `prompt`.

    A reason of `REASONS` fails with it, `queued` waits for a minute, `slow` runs for one, `large`
    has a webhook without its payload; all others come to an image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[str, dict[str, Any]] = {}
        self._ours, self._theirs = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()

    def env(self) -> dict[str, str]:
        return {
            "FAL_KEY": "id-of-a-key:secret-of-the-simulator",
            "FAL_QUEUE_URL": self.url,
            "FAL_JWKS_URL": f"{self.url}/.well-known/jwks.json",
        }

    def routes(self) -> list[Route]:
        one = "/{owner}/{app}/requests/{id}"
        return [
            Route("/.well-known/jwks.json", self._keys),
            Route(f"{one}/status", self._status),
            Route(f"{one}/cancel", self._cancel, methods=["PUT"]),
            Route(one, self._result),
            Route("/{model:path}", self._submit, methods=["POST"]),
        ]

    def forget(self) -> None:
        self.requests.clear()

    def sign(self, delivery_id: str, sent_at: datetime, body: bytes, forged: bool) -> Any:
        """Request, user, time and the body's hash, a line each."""
        time = str(int(sent_at.timestamp()))
        lines = [delivery_id, USER, time, hashlib.sha256(body).hexdigest()]
        key = self._theirs if forged else self._ours
        return {
            "X-Fal-Webhook-Request-Id": delivery_id,
            "X-Fal-Webhook-User-Id": USER,
            "X-Fal-Webhook-Timestamp": time,
            "X-Fal-Webhook-Signature": key.sign("\n".join(lines).encode()).hex(),
        }

    def problem(self, status: int, title: str, detail: str, **more: Any) -> Response:
        return Json({"detail": detail, **more}, status)

    async def _keys(self, request: Request) -> Response:
        public = base64.urlsafe_b64encode(self._ours.public_key().public_bytes_raw())
        key = {"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": public.decode().rstrip("=")}
        return Json({"keys": [key]})

    async def _submit(self, request: Request) -> Response:
        """A create; only owner and app of the model are in the addresses it answers with."""
        input = await request.json()
        webhook = request.query_params.get("fal_webhook")
        app = "/".join(request.path_params["model"].split("/")[:2])

        async def create() -> Response:
            id = str(uuid4())
            made: dict[str, Any] = {"id": id, "status": "IN_QUEUE", "prompt": input.get("prompt")}
            self.requests[id] = made
            working = self.spawn(self._work(made, webhook))
            if self.hit("webhook_before_response"):
                await asyncio.wait([working])
                await asyncio.sleep(0.1)
            here = f"{self.url}/{app}/requests/{id}"
            urls = {"status_url": f"{here}/status", "cancel_url": f"{here}/cancel"}
            shown = {"request_id": id, "gateway_request_id": id, "response_url": here, **urls}
            return Json({"status": "IN_QUEUE", "queue_position": 0, **shown})

        return await self.faulty(create, self.hit)

    async def _work(self, made: dict[str, Any], webhook: str | None) -> None:
        await asyncio.sleep(60 if made["prompt"] == "queued" else 0.05)
        if made["status"] != "IN_QUEUE":  # taken out of the queue: there is no webhook
            return
        made["status"] = "IN_PROGRESS"
        made["stop"] = stop = asyncio.Event()
        try:
            await asyncio.wait_for(stop.wait(), 60 if made["prompt"] == "slow" else 0.05)
            made["answer"] = 499, CANCELED
        except TimeoutError:
            made["answer"] = self._answer(made["prompt"])
        made["status"] = "COMPLETED"
        if webhook:
            said = orjson.dumps(self._told(made))
            self.outbox(webhook, self.hit).post(said, last=True)

    def _answer(self, prompt: Any) -> tuple[int, dict[str, Any]]:
        if prompt in REASONS:
            return REASONS[prompt]
        if self.hit("fail"):
            return REASONS["odd"]
        image = {"url": PIXEL, "content_type": "image/gif", "file_name": "pixel.gif", "width": 1}
        return 200, {"images": [image], "prompt": prompt, "seed": 7}

    def _told(self, made: dict[str, Any]) -> dict[str, Any]:
        """The body of the webhook."""
        ids = {"request_id": made["id"], "gateway_request_id": made["id"]}
        status, body = made["answer"]
        if status >= 400:
            error = f"Invalid status code: {status}"
            return {**ids, "status": "ERROR", "error": error, "payload": body}
        if made["prompt"] == "large":
            why = "Response payload is not JSON serializable"
            return {**ids, "status": "OK", "payload": None, "payload_error": why}
        return {**ids, "status": "OK", "payload": body}

    async def _status(self, request: Request) -> Response:
        made = self.requests.get(request.path_params["id"])
        if not made:
            return self.problem(404, "Not found", "Request not found")
        shown = {"status": made["status"], "request_id": made["id"]}
        return Json(shown, 200 if made["status"] == "COMPLETED" else 202)

    async def _result(self, request: Request) -> Response:
        made = self.requests.get(request.path_params["id"])
        if not made:
            return self.problem(404, "Not found", "Request not found")
        if "answer" not in made:
            return self.problem(400, "Bad request", "Request is still in progress")
        status, body = made["answer"]
        return Json(body, status)

    async def _cancel(self, request: Request) -> Response:
        made = self.requests.get(request.path_params["id"])
        match made:
            case None:
                return Json({"status": "NOT_FOUND"}, 404)
            case {"status": "IN_QUEUE"}:
                del self.requests[made["id"]]
                made["status"] = "CANCELED"
                return Json({"status": "OK"}, 200)
            case {"status": "IN_PROGRESS", "stop": stop}:
                stop.set()
                return Json({"status": "CANCELLATION_REQUESTED"}, 202)
            case _:
                return Json({"status": "ALREADY_COMPLETED"}, 400)


def simulator() -> FalSimulator:
    """For `agentflow dev --simulate`."""
    return FalSimulator()
