"""Speech to text as AssemblyAI does it: a thin webhook that proves itself by a header of our own
choice, and an answer to be fetched."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import RETRIES, Json
from agentflow.types import new_id
from agentflow_http.simulator.declared import DeclaredSimulator

HEADER = "x-agentflow-speech"


class SpeechSimulator(DeclaredSimulator):
    """`stats.created` counts transcripts by their webhook's token, or by the sound.

    `script` in a request says how long it takes and how it ends: `{"seconds": 0.1, "ends":
    "completed" | "error" | "never"}`.
    """

    name = "speech"

    def __init__(self, *, key: str, retries: Sequence[float] = RETRIES, seed: int = 0) -> None:
        super().__init__(retries=retries, seed=seed)
        self.key = key
        self.transcripts: dict[str, dict[str, Any]] = {}
        self.proof = f"speech-{new_id('proof')}"
        """The secret of our own that its webhooks show."""
        self._proof: dict[str, tuple[str, str]] = {}

    def secrets(self) -> Mapping[str, str]:
        return {**super().secrets(), "SPEECH_WEBHOOK_SECRET": self.proof}

    def service(self) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "private": True,
            "auth": {"kind": "header", "name": "authorization", "value": self.key},
            "paths": ["/v2/transcript*"],
            "tasks": {
                "transcribe": {
                    "path": "/v2/transcript",
                    "work": {
                        "id": "/id",
                        "status_path": "/v2/transcript/{id}",
                        "status": "/status",
                        "running": ["queued", "processing"],
                        "succeeded": ["completed"],
                        "failed": ["error"],
                        "canceled": ["deleted"],
                        "error": "/error",
                        "cancel": {"method": "DELETE", "path": "/v2/transcript/{id}"},
                        "poll_after": 0.1,
                    },
                }
            },
            "webhook": {
                "scheme": {"kind": "static_header", "header": HEADER},
                "secret": self.proof,
                "id": "/transcript_id",
                "status": "/status",
                "succeeded": ["completed"],
                "failed": [],
                "send": {
                    "body": {
                        "webhook_url": "{url}",
                        "webhook_auth_header_name": HEADER,
                        "webhook_auth_header_value": "{secret}",
                    }
                },
            },
        }

    def sign(
        self,
        delivery_id: str,  # noqa: ARG002 - nothing names the delivery
        sent_at: datetime,  # noqa: ARG002 - nor its time
        body: bytes,
        forged: bool,
    ) -> Mapping[str, str]:
        about = orjson.loads(body).get("transcript_id", "")
        name, proof = self._proof.get(about, (HEADER, self.proof))
        return {name: "x" * len(proof) if forged else proof}

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/v2/transcript", self._create, methods=["POST"]),
            Route("/v2/transcript", self._list),
            Route("/v2/transcript/{id}", self._one, methods=["GET", "DELETE"]),
        ]

    async def _create(self, request: Request) -> Response:
        if request.headers.get("authorization") != self.key:
            return Json({"error": "Unauthorized"}, 401)
        asked = orjson.loads(await request.body())
        if not isinstance(asked.get("audio_url"), str):
            return Json({"error": "audio_url must be a string"}, 400)

        async def create() -> Response:
            id, url = str(uuid.uuid4()), asked.get("webhook_url")
            token = url.rpartition("/")[2] if url else asked["audio_url"]
            self.stats.created[token] += 1
            header = "webhook_auth_header"
            self._proof[id] = (asked.get(f"{header}_name", "x"), asked.get(f"{header}_value", ""))
            made = {"id": id, "status": "queued", "text": None, "error": None}
            self.transcripts[id] = made
            living = self.spawn(self._live(made, asked.get("script") or {}, url))
            shown = dict(made)
            if self.hit("webhook_before_response"):
                await asyncio.wait([living])
                await asyncio.sleep(0.1)
            return Json(shown)

        return await self.faulty(create, self.hit)

    async def _list(self, request: Request) -> Response:
        if request.headers.get("authorization") != self.key:
            return Json({"error": "Unauthorized"}, 401)

        async def listed() -> Response:
            return Json({"transcripts": list(self.transcripts.values())})

        return await self.faulty(listed, self.hit)

    def forget(self) -> None:
        self.transcripts.clear()

    async def _one(self, request: Request) -> Response:
        found = self.transcripts.get(request.path_params["id"])
        if request.headers.get("authorization") != self.key or found is None:
            return Json({"error": "Transcript lookup error"}, 404)
        if request.method == "DELETE" and found["status"] in ("queued", "processing"):
            found["status"] = "deleted"
        self.stats.counts[f"{request.method.lower()}s"] += 1
        return Json(found)

    async def _live(self, made: dict[str, Any], script: dict[str, Any], url: str | None) -> None:
        made["status"] = "processing"
        await asyncio.sleep(script.get("seconds", 0.05))
        ends = "error" if self.hit("fail") else script.get("ends", "completed")
        if ends == "never" or made["status"] == "deleted":
            return
        made["status"] = ends
        made |= {"text": "well, hello"} if ends == "completed" else {"error": "no speech in it"}
        if url is not None:
            said = {"transcript_id": made["id"], "status": ends}
            self.outbox(url, self.hit).post(orjson.dumps(said), last=True)
