"""Answers that come piece by piece: shown while they come, and whole at the end.

A stream that ends before the answer does leaves its outcome unknown: the answer is paid for, and
nothing of it counts until it is whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from openai import APIConnectionError, APIError

from agentflow import OutcomeUnknown
from agentflow_openai.chats import Completion
from agentflow_openai.responses import failed
from agentflow_openai.session import plain

if TYPE_CHECKING:
    from openai import AsyncStream

    from agentflow import Call

ENDS = frozenset(f"response.{end}" for end in ("completed", "failed", "incomplete", "cancelled"))


async def response(call: Call, stream: AsyncStream[Any]) -> dict[str, Any]:
    """The response of the last event. Raises `OutcomeUnknown` if there is none."""
    async with _told(stream) as events:
        async for event in events:
            match event:
                case {"type": "response.output_text.delta", "delta": str(text)}:
                    call.stream(text)
                case {"type": str(type), "response": dict(whole)} if type in ENDS:
                    return whole
                case {"type": "error"}:
                    raise failed(event)
    raise OutcomeUnknown("OpenAI's stream ended before the response did.")


async def completion(call: Call, stream: AsyncStream[Any]) -> dict[str, Any]:
    """The completion that the chunks make. Raises `OutcomeUnknown` if it does not come to its
    end; what then still comes, the usage, may be missing."""
    whole = Completion()
    try:
        async with _told(stream) as chunks:
            async for chunk in chunks:
                call.stream(whole.add(chunk))
    except APIConnectionError:
        if not whole.finished:
            raise
    if not whole.finished:
        raise OutcomeUnknown("OpenAI's stream ended before the answer did.")
    return whole.json()


@asynccontextmanager
async def _told(stream: AsyncStream[Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The events as JSON. An error that OpenAI writes into the stream is an answer: it failed."""
    try:
        async with stream:
            yield (plain(event) async for event in stream)
    except APIError as error:
        if type(error) is not APIError:  # its connection's and its status's say something else
            raise
        raise failed(error.body) from error
