"""What goes into a batch: `openai.batch`'s input, and the JSONL file OpenAI wants of it.

The limits are those of OpenAI's guide "Batch": they are kept before anything is uploaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from agentflow import InvalidInput, ModelRequest
from agentflow_openai import chats, responses
from agentflow_openai.content import images_of

if TYPE_CHECKING:
    from agentflow import Call

MOST = 50_000
"""Requests of one batch; of embeddings, texts."""
LARGEST = 200_000_000
"""Bytes of its file."""
LONGEST_LINE = 32 * 1024 * 1024

RESPONSES, CHAT, EMBEDDINGS = "/v1/responses", "/v1/chat/completions", "/v1/embeddings"
ARGUMENTS = {RESPONSES: responses.arguments, CHAT: chats.arguments}
"""How a `ModelRequest` is written for these endpoints."""


class Item(BaseModel):
    """One request: as every model of agentflow is asked, or as OpenAI writes it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    custom_id: str = Field(min_length=1, max_length=200)
    """The caller's own name for it, given once in a batch."""
    request: ModelRequest | None = None
    """For `/v1/responses` and `/v1/chat/completions`."""
    body: dict[str, JsonValue] | None = None
    """The JSON of the endpoint, handed on as it is."""

    @model_validator(mode="after")
    def _one(self) -> Item:
        if (self.request is None) == (self.body is None):
            raise ValueError("give exactly one of request and body")
        return self


class Batch(BaseModel):
    """Requests that may take a day and cost half."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    endpoint: str = Field(RESPONSES, pattern=r"^/v1/[a-z]+(/[a-z]+)*$", max_length=100)
    """Which API all of them go to."""
    items: list[Item] = Field(default_factory=list, max_length=MOST)
    artifact: str | None = Field(None, pattern=r"^art_[0-9a-f]{32}_[0-9]{1,6}$")
    """Instead of `items`, a file of ours: one item a line, or OpenAI's own form of one."""
    completion_window: str = Field("24h", pattern=r"^[1-9][0-9]{0,2}[hd]$")
    output_expires_after: int | None = Field(None, ge=3600, le=2_592_000)
    """Seconds after which OpenAI deletes its files of the results; agentflow keeps its own."""
    metadata: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=13
    )
    """Kept by OpenAI with the batch; the job's id is added."""

    @model_validator(mode="after")
    def _whole(self) -> Batch:
        if bool(self.items) == (self.artifact is not None):
            raise ValueError("give exactly one of items and artifact")
        seen: set[str] = set()
        for item in self.items:
            if item.custom_id in seen:
                raise ValueError(f"custom_id {item.custom_id!r} is given twice")
            seen.add(item.custom_id)
            _check_endpoint(item, self.endpoint)
        return self


def _check_endpoint(item: Item, endpoint: str) -> None:
    if item.request is not None and endpoint not in ARGUMENTS:
        raise ValueError(f"{item.custom_id!r}: {endpoint} takes a body, not a request")


@dataclass(slots=True)
class Written:
    """How much a file holds. Raises `InvalidInput` on the way to more than a batch may."""

    requests: int = 0
    size: int = 0
    texts: int = 0

    def add(self, line: bytes, body: dict[str, Any]) -> None:
        self.requests += 1
        self.size += len(line)
        texts = body.get("input")
        self.texts += len(texts) if isinstance(texts, list) else 1
        if self.requests > MOST:
            raise InvalidInput(f"A batch holds at most {MOST:,} requests.")
        if self.size > LARGEST:
            raise InvalidInput(
                f"A batch holds at most {LARGEST:,} bytes; request {self.requests:,} is too much."
            )


async def write(call: Call, batch: Batch, file: IO[bytes]) -> Written:
    """Write the batch's file. Raises `InvalidInput`, with the line, for what cannot be sent."""
    written, seen = Written(), set[str]()
    async for item in _items(call, batch):
        if item.custom_id in seen:
            raise InvalidInput(f"custom_id {item.custom_id!r} is given twice.")
        seen.add(item.custom_id)
        body = item.body
        if item.request is not None:
            images = await images_of(call, item.request)
            body = ARGUMENTS[batch.endpoint](item.request, images)
        line = {"custom_id": item.custom_id, "method": "POST", "url": batch.endpoint, "body": body}
        encoded = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        written.add(encoded, body or {})
        if batch.endpoint == EMBEDDINGS and written.texts > MOST:
            raise InvalidInput(f"A batch of embeddings holds at most {MOST:,} texts.")
        file.write(encoded)
        if written.requests % 200 == 0:
            await asyncio.sleep(0)  # others want to breathe
    if not written.requests:
        raise InvalidInput("The file holds no request.")
    file.seek(0)
    return written


async def _items(call: Call, batch: Batch) -> AsyncIterator[Item]:
    for item in batch.items:
        yield item
    if batch.artifact is None:
        return
    number = 0
    async with call.open_artifact(batch.artifact) as chunks:
        async for number, line in numbered(chunks):
            try:
                item = _item(line, batch.endpoint)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                place = ".".join(map(str, first["loc"])) or "it"
                raise InvalidInput(f"Line {number}: {place}: {first['msg']}") from None
            except ValueError as error:
                raise InvalidInput(f"Line {number}: {error}") from None
            yield item


def _item(line: bytes, endpoint: str) -> Item:
    """Raises `ValueError`. OpenAI's own form has a `url`, and often a `method`."""
    said = orjson.loads(line)
    if isinstance(said, dict) and "url" in said:
        if said["url"] != endpoint or said.get("method", "POST") != "POST":
            raise ValueError(f"the batch is for POST {endpoint}")
        said = {name: said[name] for name in ("custom_id", "body") if name in said}
    item = Item.model_validate(said)
    _check_endpoint(item, endpoint)
    return item


async def numbered(
    chunks: AsyncIterator[bytes], longest: int = LONGEST_LINE
) -> AsyncIterator[tuple[int, bytes]]:
    """The lines that are not blank, each with its number, whatever the chunks.

    Raises `InvalidInput` for one that is longer.
    """
    rest, number = bytearray(), 0
    async for chunk in chunks:
        start = len(rest)
        rest += chunk
        end = rest.rfind(b"\n", start)
        if end >= 0:
            for line in _lines(rest[:end]):
                number += 1
                if line.strip():
                    yield number, line
            del rest[: end + 1]
        if len(rest) > longest:
            raise InvalidInput(f"Line {number + 1} has more than {longest:,} bytes.")
    if rest.strip():
        yield number + 1, bytes(rest)


def _lines(block: bytearray) -> Iterator[bytes]:
    yield from bytes(block).split(b"\n")
