"""A simulated response of the Responses API: what was asked, how it shall end, the JSON of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Script(BaseModel):
    """How the work shall go: JSON in the request's metadata, under `simulate`."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = 0.05
    outcome: Literal["completed", "failed", "incomplete", "cancelled", "never"] = "completed"
    text: str | None = None
    """What the model says; else it repeats the last words it was told."""
    tool: str | None = None
    """The tool it calls instead, with its first argument filled in."""
    images: int = 0
    """Pictures it draws on the way."""
    code: str = "server_error"
    reason: str = "max_output_tokens"

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Script:
        """Raises `ValueError`."""
        return cls.model_validate_json((asked.get("metadata") or {}).get("simulate") or "{}")


@dataclass(slots=True)
class Work:
    asked: Mapping[str, Any]
    script: Script
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    status: str = "queued"
    created_at: float = field(default_factory=time.time)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, status: str | None = None) -> bool:
        """Reach a final status; whether that is news."""
        if self.ended.is_set():
            return False
        self.status = status or self.script.outcome
        self.ended.set()
        return True

    def view(self) -> dict[str, Any]:
        """The response object."""
        asked, done = self.asked, self.status in ("completed", "incomplete")
        failed = {"code": self.script.code, "message": "Simulated failure."}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": self.status,
            "background": bool(asked.get("background")),
            "error": failed if self.status == "failed" else None,
            "incomplete_details": {"reason": self.script.reason}
            if self.status == "incomplete"
            else None,
            "metadata": asked.get("metadata") or {},
            "model": f"{asked['model']}-2026-01-01",
            "output": self._output() if done else [],
            "parallel_tool_calls": True,
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "text": asked.get("text") or {"format": {"type": "text"}},
            "usage": USAGE if done else None,
        }

    def events(self) -> Iterator[dict[str, Any]]:
        """What a stream tells of it, word by word; it has ended, unless it never does."""
        begun = {**self.view(), "status": "in_progress", "output": [], "usage": None}
        yield {"type": "response.created", "response": begun}
        ended = self.ended.is_set()
        for item in self.view()["output"] if ended else self._output():
            for part in item.get("content", ()):
                for word in words(part["text"]):
                    about = {"item_id": item["id"], "output_index": 0, "content_index": 0}
                    delta = {"type": "response.output_text.delta", "delta": word, "logprobs": []}
                    yield {**delta, **about}
        if ended:
            yield {"type": f"response.{self.status}", "response": self.view()}

    def _output(self) -> list[dict[str, Any]]:
        if self.script.tool is not None:
            arguments = json.dumps({"query": last_words(self.asked.get("input"))})
            call = {"call_id": "call_1", "name": self.script.tool, "arguments": arguments}
            return [{"type": "function_call", "id": "fc_1", "status": "completed", **call}]
        text = self.script.text or f"You said: {last_words(self.asked.get('input'))}"
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
        drawn = {"type": "image_generation_call", "status": "completed", "result": PIXEL}
        images = [{**drawn, "id": f"ig_{n}"} for n in range(self.script.images)]
        return [*images, {**message, "content": [part]}]


PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJ"
    "RU5ErkJggg=="
)
"""A picture in base64."""

USAGE = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 19,
}


def words(text: str) -> list[str]:
    """The text in pieces, as a model writes it."""
    return re.findall(r"\s*\S+|\s+", text)


def sent_event(said: Mapping[str, Any]) -> bytes:
    """A server-sent event, named by its type where it has one."""
    name = f"event: {said['type']}\n" if "type" in said else ""
    return f"{name}data: {json.dumps(said)}\n\n".encode()


def last_words(messages: Any) -> str:
    """The text of the last message, as Chat Completions or as the Responses API write them."""
    if isinstance(messages, str):
        return messages
    content = messages[-1].get("content") if messages else ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")
