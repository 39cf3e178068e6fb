"""Simulated files and batches: a batch reads its file, works on each line, and writes two files."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import Json
from agentflow.types import new_id
from agentflow_openai.simulator.work import Script, Work, last_words

if TYPE_CHECKING:
    from agentflow_openai.simulator.openai import OpenAISimulator

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

CONTENT = re.compile(rb'filename="[^"]*"[^\r]*(?:\r\n[^\r]+)*\r\n\r\n(.*?)\r\n--', re.DOTALL)
"""The file in a multipart body."""


class BatchScript(BaseModel):
    """How a batch shall go: JSON in its metadata, under `simulate`."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = 0.05
    outcome: Literal["completed", "failed", "expired", "never"] = "completed"
    answered: int | None = None
    """How many requests it comes to before it ends."""
    code: str = "invalid_json_line"
    """Of a batch that failed."""
    usage: bool = True
    """Whether the batch sums its tokens, as newer ones do."""

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> BatchScript:
        """Raises `ValueError`."""
        return cls.model_validate_json((asked.get("metadata") or {}).get("simulate") or "{}")


@dataclass(slots=True)
class SimulatedBatch:
    asked: Mapping[str, Any]
    script: BatchScript
    id: str = field(default_factory=lambda: new_id("batch"))
    status: str = "validating"
    created_at: int = field(default_factory=lambda: int(time.time()))
    output: str | None = None
    errors: str | None = None
    completed: int = 0
    failed: int = 0
    total: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def view(self) -> dict[str, Any]:
        """The batch object."""
        each = {"input_tokens": 12, "output_tokens": 7, "total_tokens": 19}
        usage = {name: value * self.completed for name, value in each.items()}
        details = {"input_tokens_details": {"cached_tokens": 0}}
        details |= {"output_tokens_details": {"reasoning_tokens": 0}}
        wrong = {"code": self.script.code, "line": 1, "message": "Simulated failure."}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.asked["endpoint"],
            "completion_window": self.asked["completion_window"],
            "input_file_id": self.asked["input_file_id"],
            "created_at": self.created_at,
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": self.errors,
            "errors": {"object": "list", "data": [wrong]} if self.status == "failed" else None,
            "metadata": self.asked.get("metadata") or {},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "usage": {**usage, **details} if self.script.usage and self.ended.is_set() else None,
        }


class Batches:
    """`files` holds contents by id; whoever drops one has deleted it at OpenAI."""

    def __init__(self, sim: OpenAISimulator) -> None:
        self.sim = sim
        self.files: dict[str, bytes] = {}
        self.all: dict[str, SimulatedBatch] = {}
        self.failing = 0
        """How many uploads fail from now on."""

    def routes(self, guarded: Callable[[Endpoint], Endpoint]) -> Sequence[BaseRoute]:
        post = ["POST"]
        return [
            Route("/v1/files", guarded(self._upload), methods=post),
            Route("/v1/files/{id}/content", guarded(self._content)),
            Route("/v1/batches", guarded(self._create), methods=post),
            Route("/v1/batches", guarded(self._list)),
            Route("/v1/batches/{id}", guarded(self._retrieve)),
            Route("/v1/batches/{id}/cancel", guarded(self._cancel), methods=post),
        ]

    async def _upload(self, request: Request) -> Response:
        self.sim.stats.counts["uploads"] += 1
        if self.failing:
            self.failing -= 1
            return self.sim.problem(502, "server_error", "Simulated error.")
        found = CONTENT.search(await request.body())
        if found is None:
            return self.sim.problem(400, "invalid_request_error", "There is no file.")
        id = self._keep(found[1])
        size = len(found[1])
        made = {"id": id, "object": "file", "bytes": size, "created_at": int(time.time())}
        return Json({**made, "filename": "in.jsonl", "purpose": "batch", "status": "processed"})

    def _keep(self, content: bytes) -> str:
        id = new_id("file").replace("_", "-")
        self.files[id] = content
        return id

    async def _content(self, request: Request) -> Response:
        self.sim.stats.counts["downloads"] += 1
        content = self.files.get(request.path_params["id"])
        if content is None:
            return self.sim.problem(404, "invalid_request_error", "No such File object.")
        return Response(content, media_type="application/octet-stream")

    async def _create(self, request: Request) -> Response:
        asked = orjson.loads(await request.body())
        try:
            script = BatchScript.of(asked)
        except ValueError as error:
            return self.sim.problem(400, "invalid_request_error", str(error))
        if asked["input_file_id"] not in self.files:
            return self.sim.problem(400, "invalid_request_error", "No such file.")

        async def create() -> Response:
            made = SimulatedBatch(asked, script)
            about = asked.get("metadata") or {}
            key = f"{about.get('agentflow_job')}:{about.get('agentflow_attempt')}"
            self.sim.stats.created[key] += 1
            self.all[made.id] = made
            self.sim.spawn(self._live(made))
            if self.sim.hit("webhook_before_response"):
                await made.ended.wait()
                await asyncio.sleep(0.1)
            return Json(made.view())

        return await self.sim.faulty(create, self.sim.hit)

    async def _live(self, batch: SimulatedBatch) -> None:
        content = self.files[batch.asked["input_file_id"]]
        lines = [orjson.loads(line) for line in content.split(b"\n") if line]
        batch.total = len(lines)
        batch.status = "in_progress"
        await asyncio.sleep(batch.script.seconds)
        if batch.script.outcome != "never" and not batch.ended.is_set():
            ends = "failed" if self.sim.hit("fail") else batch.script.outcome
            if ends != "failed":
                self._work(batch, lines)
            self._end(batch, ends)

    def _work(self, batch: SimulatedBatch, lines: list[Any]) -> None:
        """The answers, in an order of OpenAI's own."""
        made = lines[: batch.script.answered]
        random.Random(7).shuffle(made)
        good: list[Any] = []
        bad: list[Any] = []
        for line in made:
            status, body = answer(line)
            said = {"status_code": status, "request_id": new_id("req"), "body": body}
            each = {"id": new_id("batch_req"), "custom_id": line["custom_id"], "error": None}
            (good if status == 200 else bad).append({**each, "response": said})
        late = {"code": "batch_expired", "message": "The window has passed."}
        if batch.script.outcome == "expired":
            left = lines[len(made) :]
            bad += [
                {"id": "x", "custom_id": each["custom_id"], "response": None, "error": late}
                for each in left[:-1]  # one is forgotten
            ]
        batch.completed, batch.failed = len(good), len(bad)
        batch.output, batch.errors = (
            self._keep(b"".join(_jsonl(found))) if found else None for found in (good, bad)
        )

    def _end(self, batch: SimulatedBatch, status: str) -> None:
        if batch.ended.is_set():
            return
        batch.status = status
        batch.ended.set()
        self.sim.announce(f"batch.{status}", batch.id)

    async def _list(self, request: Request) -> Response:
        """The newest first, page by page."""
        every = sorted(self.all.values(), key=lambda b: -b.created_at)
        after = request.query_params.get("after")
        if after is not None:
            every = every[[b.id for b in every].index(after) + 1 :]
        page = every[: int(request.query_params.get("limit", "20"))]
        more = len(every) > len(page)
        return Json({"object": "list", "data": [b.view() for b in page], "has_more": more})

    async def _retrieve(self, request: Request) -> Response:
        self.sim.stats.counts["fetches"] += 1
        batch = self.all.get(request.path_params["id"])
        return Json(batch.view()) if batch else self._missing()

    async def _cancel(self, request: Request) -> Response:
        self.sim.stats.counts["cancels"] += 1
        batch = self.all.get(request.path_params["id"])
        if batch is None:
            return self._missing()
        if batch.ended.is_set() or batch.status == "cancelling":
            detail = f"Cannot cancel a batch with status '{batch.status}'."
            return self.sim.problem(409, "invalid_request_error", detail)
        batch.status = "cancelling"
        self.sim.spawn(self._stop(batch))
        return Json(batch.view())

    async def _stop(self, batch: SimulatedBatch) -> None:
        await asyncio.sleep(batch.script.seconds)
        self._end(batch, "cancelled")

    def _missing(self) -> Response:
        return self.sim.problem(404, "invalid_request_error", "No batch found.")


def answer(line: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The status and the body that one request comes to; the words `reject` are refused."""
    body = line["body"]
    words = (
        ""
        if line["url"] == "/v1/embeddings"
        else last_words(body.get("input") or body.get("messages"))
    )
    if words == "reject":
        wrong = {"message": "It violates the policy.", "type": "invalid", "param": None}
        return 400, {"error": {**wrong, "code": "content_policy_violation"}}
    match line["url"]:
        case "/v1/responses":
            work = Work(body, Script())
            work.end("completed")
            return 200, work.view()
        case "/v1/chat/completions":
            said = orjson.dumps({"said": words}).decode() if body.get("response_format") else words
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 12, "completion_tokens": 7}
            return 200, {"model": body["model"], "choices": [choice], "usage": usage}
        case "/v1/embeddings":
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            data = [{"index": n, "embedding": [float(len(t))]} for n, t in enumerate(texts)]
            return 200, {"model": body["model"], "data": data, "usage": {"prompt_tokens": 12}}
        case _:
            return 200, {"echo": body}


def _jsonl(lines: Sequence[Any]) -> Iterator[bytes]:
    for line in lines:
        yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
