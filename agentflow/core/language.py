"""What every task of `kind="model"` speaks, so that an agent can work with any provider.

A `ModelRequest` goes in, a `ModelReply` comes out, as JSON on both sides. What only one provider
knows travels in `ModelRequest.options`, or in fields of a subclass.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from agentflow.core.results import Result

NAME = r"^[A-Za-z0-9_-]{1,64}$"


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class TextPart(_Shape):
    type: Literal["text"] = "text"
    text: str


class ImagePart(_Shape):
    type: Literal["image"] = "image"
    url: str
    """http(s), `data:`, or the id of an artifact (`art_…`)."""


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ToolCall(_Shape):
    """What the model wants to have done; `id` names it in the answer to it."""

    id: str
    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    malformed: str | None = None
    """What the model wrote instead, where that is no JSON object; `arguments` is empty then."""

    @classmethod
    def read(cls, id: str, name: str, arguments: str) -> ToolCall:
        """From the text of the arguments, which models now and then get wrong."""
        try:
            read = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict):
            return cls(id=id, name=name, arguments=read)
        return cls(id=id, name=name, malformed=arguments)


class ModelMessage(_Shape):
    """One turn. `tool_calls` are the assistant's; `tool_call_id` says what a `tool` answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[Part] = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> ModelMessage:
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to the role tool, which needs it")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant calls tools")
        return self

    @property
    def text(self) -> str:
        """Its text without anything else."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class ModelTool(_Shape):
    """A function the model may ask for; `parameters` is the JSON Schema of its arguments."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})


class ModelRequest(_Shape):
    """What a model is asked. What is None is left to the provider."""

    model: str = Field(min_length=1, max_length=200)
    """As the provider calls it."""
    messages: list[ModelMessage] = Field(min_length=1)
    tools: list[ModelTool] = Field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] | None = None
    output_schema: dict[str, Any] | None = None
    """A JSON Schema: the reply's `output` is what fits it."""
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    stream: bool = False
    """Show the text live while it is written, where the provider can. The reply is the same."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of this provider's own, handed on as they are."""


Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class ModelReply(_Shape):
    """What a model answered."""

    text: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    output: JsonValue = None
    """The answer as JSON, where an `output_schema` was given; None if the model wrote none."""
    refusal: str | None = None
    """Why the model did not want to, where it says so."""
    finish: Finish = "stop"
    """Why it ended; `length`: the text is cut off."""
    model: str | None = None
    """The exact model that answered."""
    usage: dict[str, float] = Field(default_factory=dict)
    """`input_tokens`, `output_tokens`, and more of what the provider bills."""

    def result(self) -> Result:
        """The result of a task: this as its output, text and usage where every result has them."""
        output = self.model_dump(mode="json", exclude={"usage"})
        return Result(output=output, text=self.text, usage=dict(self.usage))


def parsed(text: str | None) -> JsonValue:
    """The text as JSON; None if it is not."""
    try:
        read: JsonValue = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return read
