"""The tasks about sound: `openai.speech`, `openai.transcribe`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from agentflow import Artifact, Policy, Result
from agentflow_openai.content import data_url, numbers
from agentflow_openai.provider import provider

if TYPE_CHECKING:
    from agentflow import Call

_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "application/octet-stream",
}


class Speech(BaseModel):
    """What to say, and in whose voice."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    input: str = Field(min_length=1, max_length=4096)
    voice: str = "alloy"
    model: str = Field("gpt-4o-mini-tts", min_length=1, max_length=200)
    instructions: str | None = None
    """How to say it."""
    response_format: str = Field("mp3", pattern="^(mp3|opus|aac|flac|wav|pcm)$")


@provider.task("speech", input=Speech, policy=Policy(timeout=300))
async def speech(call: Call, input: Speech) -> Result:
    """Say a text; the sound is the result's one artifact."""
    from agentflow_openai.session import session

    async with session(call) as client:
        sound = await client.audio.speech.create(**input.model_dump(exclude_none=True))
        content = sound.content
    url = data_url(content, _TYPES[input.response_format])
    name = f"speech.{input.response_format}"
    return Result(
        output={"bytes": len(content)},
        artifacts=[Artifact(url, name, _TYPES[input.response_format])],
        usage={"characters": len(input.input)},
    )


class Transcribe(BaseModel):
    """A recording in our custody, to be written down."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    artifact: str = Field(pattern=r"^art_[0-9a-f]{32}_[0-9]{1,6}$")
    """The id of the file."""
    name: str = Field("audio.mp3", pattern=r"^[\w.-]{1,100}$")
    """OpenAI goes by its ending."""
    model: str = Field("gpt-4o-transcribe", min_length=1, max_length=200)
    language: str | None = None
    """ISO 639-1, as in `de`."""
    prompt: str | None = None


@provider.task("transcribe", input=Transcribe, policy=Policy(timeout=600))
async def transcribe(call: Call, input: Transcribe) -> Result:
    """Write down what is said in a recording."""
    from agentflow_openai.session import plain, session

    content = await call.artifact(input.artifact)
    given = input.model_dump(exclude_none=True, exclude={"artifact", "name"})
    async with session(call) as client:
        made = plain(await client.audio.transcriptions.create(file=(input.name, content), **given))
    return Result(
        output={"text": made.get("text")},
        text=made.get("text"),
        usage=numbers(made.get("usage"), ("input_tokens", "output_tokens", "seconds")),
    )
