"""OpenAI's HTTP API as far as the plugin and its users meet it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.poster import Poster
from agentflow.testing.simulator import RETRIES, Json, Simulator, Streamed
from agentflow.types import new_id
from agentflow_openai.simulator.batches import CONTENT, Batches
from agentflow_openai.simulator.chunks import TOKENS, chunked
from agentflow_openai.simulator.endpoints import Endpoints, event
from agentflow_openai.simulator.work import PIXEL, Script, Work, last_words, sent_event

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class OpenAISimulator(Simulator):
    """Responses that repeat what they were told; see `Script` for what else.

    `key` is the only one that is let in. `webhook_url` is an endpoint of the project, told of the
    end of background responses and of batches, like those made over the API. `stats.created`
    counts responses and batches by `job:attempt` of their metadata.
    """

    def __init__(
        self,
        *,
        key: str,
        secret: str | None = None,
        retries: Sequence[float] = RETRIES,
        seed: int = 0,
    ) -> None:
        super().__init__(secret=secret, retries=retries, seed=seed)
        self.key = key
        self.works: dict[str, Work] = {}
        self.batches, self.endpoints = Batches(self), Endpoints(self)
        self.poster = Poster()

    def routes(self) -> Sequence[BaseRoute]:
        return [
            self._post("/v1/responses", self._respond),
            self._post("/v1/responses/{id}/cancel", self._cancel),
            Route("/v1/responses/{id}", self._known(self._retrieve)),
            self._post("/v1/chat/completions", self._paid(self._chat)),
            self._post("/v1/embeddings", self._paid(self._embed)),
            self._post("/v1/images/generations", self._paid(self._image)),
            self._post("/v1/audio/speech", self._paid(self._speech)),
            self._post("/v1/audio/transcriptions", self._paid(self._transcribe)),
            *self.batches.routes(self._known),
            *self.endpoints.routes(self._known),
        ]

    def problem(self, status: int, title: str, detail: str, **more: Any) -> Response:
        """`{"error": {message, type, param, code}}`"""
        error = {"message": detail, "type": title, "param": None, "code": None, **more}
        return Json({"error": error}, status)

    def throttled(self, seconds: float) -> Response:
        response = self.problem(429, "requests", "Rate limit reached.", code="rate_limit_exceeded")
        response.headers["retry-after-ms"] = f"{seconds * 1000:g}"
        return response

    def env(self) -> dict[str, str]:
        return {
            "OPENAI_API_KEY": self.key,
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_WEBHOOK_SECRET": self.secret,
        }

    def forget(self) -> None:
        """Drop every response, as OpenAI does with those it is not to store, and every batch."""
        self.works.clear()
        self.batches.all.clear()

    def _post(self, path: str, endpoint: Endpoint) -> Route:
        return Route(path, self._known(endpoint), methods=["POST"])

    def _known(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            if request.headers.get("authorization") == f"Bearer {self.key}":
                return await endpoint(request)
            return self.problem(401, "auth", "Incorrect API key.", code="invalid_api_key")

        return guarded

    def _paid(self, work: Endpoint) -> Endpoint:
        """A call that answers at once, with the faults around it."""

        async def answer(request: Request) -> Response:
            async def create() -> Response:
                self.stats.counts[request.url.path] += 1
                return await work(request)

            return await self.faulty(create, self.hit)

        return answer

    async def _respond(self, request: Request) -> Response:
        asked = orjson.loads(await request.body())
        try:
            script = Script.of(asked)
        except ValueError as error:
            return self.problem(400, "invalid_request_error", str(error))
        if asked["model"] == "missing":
            return self.problem(404, "invalid_request_error", "No such model.", code="model_404")

        async def create() -> Response:
            work = Work(asked, script)
            about = asked.get("metadata") or {}
            key = f"{about.get('agentflow_job')}:{about.get('agentflow_attempt')}"
            self.stats.created[key] += 1
            self.works[work.id] = work
            if asked.get("stream"):
                return self._streamed(work)
            living = self.spawn(self._live(work))
            if not asked.get("background"):
                await asyncio.wait([living])
            elif self.hit("webhook_before_response"):
                await work.ended.wait()
                await asyncio.sleep(0.1)
            return Json(work.view())

        return await self.faulty(create, self.hit)

    def _streamed(self, work: Work) -> Response:
        if work.script.outcome != "never":
            work.end("failed" if self.hit("fail") else None)
        pieces = [{**event, "sequence_number": n} for n, event in enumerate(work.events())]
        return Streamed([sent_event(each) for each in pieces], work.script.seconds)

    async def _live(self, work: Work) -> None:
        work.status = "in_progress"
        await asyncio.sleep(work.script.seconds)
        if work.script.outcome != "never":
            self._end(work, "failed" if self.hit("fail") else None)

    def _end(self, work: Work, status: str | None = None) -> None:
        if work.end(status) and work.asked.get("background"):
            self.announce(f"response.{work.status}", work.id)

    def announce(self, type: str, id: str) -> None:
        """Tell the project's endpoints that something has happened to an object."""
        body = event(type, id)
        if self.webhook_url is not None:
            self.outbox(self.webhook_url, self.hit).post(body, last=True)
        self.endpoints.announce(type, body)

    async def _close(self) -> None:
        await super()._close()
        await self.endpoints.aclose()
        await self.poster.aclose()

    async def _retrieve(self, request: Request) -> Response:
        self.stats.counts["fetches"] += 1
        work = self.works.get(request.path_params["id"])
        return Json(work.view()) if work else self._missing()

    async def _cancel(self, request: Request) -> Response:
        self.stats.counts["cancels"] += 1
        work = self.works.get(request.path_params["id"])
        if work is None:
            return self._missing()
        if not work.asked.get("background"):
            detail = "Only background responses can be cancelled."
            return self.problem(400, "invalid_request_error", detail)
        self._end(work, "cancelled")
        return Json(work.view())

    def _missing(self) -> Response:
        return self.problem(404, "invalid_request_error", "No response found.")

    async def _chat(self, request: Request) -> Response:
        asked = orjson.loads(await request.body())
        text = last_words(asked["messages"])
        message: dict[str, Any] = {"role": "assistant", "content": f"You said: {text}"}
        reason = "stop"
        if asked.get("response_format"):
            message["content"] = orjson.dumps({"said": text}).decode()
        if asked.get("tool_choice") == "required":
            function = {"name": asked["tools"][0]["function"]["name"], "arguments": '{"a": 1}'}
            call = {"id": "call_1", "type": "function", "function": function}
            message, reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "stop"
        if text == "reject":
            detail = "It violates the policy."
            return self.problem(400, "invalid", detail, code="content_policy_violation")
        about = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": asked["model"]}
        if asked.get("stream"):
            usage = (asked.get("stream_options") or {}).get("include_usage")
            return chunked(about, message, reason, usage=bool(usage), fails=self.hit("fail"))
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return Json({**about, "object": "chat.completion", "choices": [choice], "usage": TOKENS})

    async def _embed(self, request: Request) -> Response:
        asked = orjson.loads(await request.body())
        data = [
            {"object": "embedding", "index": n, "embedding": [float(len(text)), 0.5]}
            for n, text in enumerate(asked["input"])
        ]
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        whole = {"object": "list", "model": asked["model"], "usage": usage}
        return Json({**whole, "data": data[::-1]})

    async def _image(self, request: Request) -> Response:
        asked = orjson.loads(await request.body())
        data = [{"b64_json": PIXEL} for _ in range(asked.get("n") or 1)]
        usage = {"input_tokens": 5, "output_tokens": 100, "total_tokens": 105}
        return Json({"created": int(time.time()), "data": data, "usage": usage})

    async def _speech(self, request: Request) -> Response:
        asked = orjson.loads(await request.body())
        return Response(b"ID3" + asked["input"].encode(), media_type="audio/mpeg")

    async def _transcribe(self, request: Request) -> Response:
        """Repeats the recording: what the tests send as one is text."""
        said = CONTENT.search(await request.body())
        return Json({"text": said[1].decode() if said else ""})
