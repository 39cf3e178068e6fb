"""The task about pictures: `openai.image`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from agentflow import Artifact, Policy, ProviderError, Result
from agentflow_openai.content import apart, asking, numbers
from agentflow_openai.provider import provider

if TYPE_CHECKING:
    from agentflow import Call

_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class Picture(BaseModel):
    """What to draw. What is None is left to OpenAI."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str = Field("gpt-image-1", min_length=1, max_length=200)
    n: int = Field(1, ge=1, le=10)
    size: str | None = None
    """As in `1024x1024`, or `auto`."""
    quality: str | None = None
    output_format: str | None = Field(None, pattern="^(png|jpeg|webp)$")
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """More parameters of `images.generate`, handed on as they are."""


POLICY = Policy(timeout=300, files_live=3600)
"""Where a service gives URLs instead of the pictures: OpenAI's are good for an hour."""


@provider.task("image", input=Picture, policy=POLICY)
async def image(call: Call, input: Picture) -> Result:
    """Draw pictures; each is an artifact of the result."""
    from agentflow_openai.session import plain, session

    apart(input.options, {"stream", *Picture.model_fields})
    given = asking(input.model_dump(exclude_none=True, exclude={"options"}), input.options)
    async with session(call) as client:
        made = plain(await client.images.generate(**given))
        return drawn(made, _TYPES[input.output_format or "png"])


def drawn(made: dict[str, Any], media_type: str) -> Result:
    """The pictures of an answer, which holds them as base64 or, from older models, by URL."""
    kind = media_type.partition("/")[2]
    files = []
    for number, each in enumerate(made.get("data") or ()):
        if encoded := each.get("b64_json"):
            url = f"data:{media_type};base64,{encoded}"
        elif not (url := each.get("url")):
            raise ProviderError("An image came back without its content.")
        files.append(Artifact(url, f"image-{number}.{kind}", media_type))
    if not files:
        raise ProviderError("OpenAI drew no image.")
    prompts = [each.get("revised_prompt") for each in made["data"]]
    return Result(
        output={"images": len(files), "revised_prompts": [p for p in prompts if p]},
        artifacts=files,
        usage=numbers(made.get("usage"), ("input_tokens", "output_tokens")),
    )
