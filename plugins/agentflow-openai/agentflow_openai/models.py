"""The tasks about language: `openai.respond`, `openai.chat`, `openai.embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from agentflow import (
    Accepted,
    Changed,
    Failed,
    ModelReply,
    ModelRequest,
    OutcomeUnknown,
    Policy,
    Progressed,
    ProviderFailure,
    Result,
    ResultLost,
)
from agentflow_openai import chats, responses
from agentflow_openai.content import asking, embedded, images_of, mark
from agentflow_openai.failures import is_gone
from agentflow_openai.prices import most_of_request, most_of_texts
from agentflow_openai.provider import provider
from agentflow_openai.responses import State, fact, identity

if TYPE_CHECKING:
    from datetime import datetime

    from agentflow import Call

POLICY = Policy(timeout=600, deadline=4 * 3600, poll_after=2, poll_max=30, poll_after_webhook=30)
"""A model may think for minutes. Background responses are kept for some ten minutes only where the
project stores none, so a lost webhook must not go unnoticed for longer than half a minute."""


class Respond(ModelRequest):
    """A request to the Responses API."""

    background: bool = False
    """OpenAI works on, and a webhook or a poll finds the end: nothing waits meanwhile."""
    metadata: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=14
    )
    """Kept by OpenAI with the response; the job's id is added."""
    hosted_tools: list[dict[str, JsonValue]] = Field(default_factory=list, max_length=100)
    """Tools that OpenAI runs itself, as it writes them: `{"type": "web_search"}`. Pictures that
    `image_generation` draws are artifacts."""

    @model_validator(mode="after")
    def _heard(self) -> Respond:
        if self.background and self.stream:
            raise ValueError("stream is for the foreground: in the background nobody listens")
        return self


@provider.task("respond", kind="model", input=Respond, policy=POLICY)
async def respond(call: Call, input: Respond) -> State | Accepted:
    """Ask a model through the Responses API, in the foreground or in the background."""
    from agentflow_openai import streams
    from agentflow_openai.session import plain, session

    given = responses.arguments(input, await images_of(call, input))
    if input.hosted_tools:
        given["tools"] = [*given.get("tools", ()), *input.hosted_tools]
    if input.background:
        given["background"] = True
    given["metadata"] = {**input.metadata, **mark(call)}
    given = asking(given, input.options)
    async with session(call) as client:
        if input.stream:
            made = await streams.response(call, await client.responses.create(**given, stream=True))
        else:
            made = plain(await client.responses.create(**given))
        id = identity(made)
        if id is None:
            raise OutcomeUnknown("OpenAI took the call and named no response.")
        state = fact(made)
        return Accepted(id) if isinstance(state, Progressed | Changed) else state


respond.most(most_of_request)


@respond.fetch
async def fetch(call: Call, external_id: str) -> State:
    """The response as it is now. One that OpenAI no longer has is lost."""
    from agentflow_openai.session import plain, session

    try:
        async with session(call, create=False) as client:
            state = fact(plain(await client.responses.retrieve(external_id)))
    except ProviderFailure as refused:
        if refused.detail.get("status") == 404:
            lost = ResultLost("OpenAI knows no such response; it keeps some for minutes only.")
            return Failed(lost, external_id=external_id)
        raise
    if isinstance(state, Changed):  # to fetch it again at once would tell nothing more
        return Progressed(message="unknown status", external_id=external_id)
    return state


@respond.find
async def find(call: Call, token: str, since: datetime) -> str | None:  # noqa: ARG001
    """OpenAI lists no responses, but a webhook names each one that ends in the background: one
    that is nobody's may be ours, and its metadata tell."""
    from agentflow_openai.session import plain, session

    async with session(call, create=False) as client:
        for id in call.strays:
            if not id.startswith("resp_"):
                continue
            try:
                about = plain(await client.responses.retrieve(id)).get("metadata")
            except Exception as error:
                if is_gone(error):
                    continue
                raise
            if isinstance(about, dict) and mark(call).items() <= about.items():
                return id
    return None


@respond.cancel
async def cancel(call: Call, external_id: str) -> State | None:
    """Ask OpenAI to stop; only background responses can be stopped."""
    from agentflow_openai.session import plain, session

    try:
        async with session(call, create=False) as client:
            return fact(plain(await client.responses.cancel(external_id)))
    except ProviderFailure as refused:
        if refused.detail.get("status") in (400, 404):
            return None
        raise


@provider.task("chat", kind="model", policy=POLICY)
async def chat(call: Call, input: ModelRequest) -> ModelReply | Failed:
    """Ask a model through Chat Completions, which other services speak too."""
    from agentflow_openai import streams
    from agentflow_openai.session import plain, session

    given = chats.arguments(input, await images_of(call, input))
    async with session(call) as client:
        create = client.chat.completions.create
        if input.stream:
            given = asking({"stream_options": {"include_usage": True}, **given}, input.options)
            whole = await streams.completion(call, await create(**given, stream=True))
        else:
            whole = plain(await create(**asking(given, input.options)))
    try:
        return chats.reply(whole, input)
    except ProviderFailure as failure:
        return Failed(failure, usage=chats.tokens(whole.get("usage")) or None)


chat.most(most_of_request)


class Embed(BaseModel):
    """Texts to embed, all with one model."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str = Field(min_length=1, max_length=200)
    input: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=2048)
    dimensions: int | None = Field(None, ge=1)
    """The length of each vector, where the model lets one choose."""


@provider.task("embed", input=Embed, policy=Policy(timeout=120))
async def embed(call: Call, input: Embed) -> Result:
    """Embed texts: `{"embeddings": [[0.1, …], …]}` in the order of the input."""
    from agentflow_openai.session import plain, session

    given = input.model_dump(exclude_none=True)
    async with session(call) as client:
        made = plain(await client.embeddings.create(**given, encoding_format="float"))
        return embedded(made, len(input.input))


embed.most(most_of_texts)
