"""The project's webhook endpoint, made, renewed and tried over OpenAI's own API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentflow import InvalidInput, WebhookSetup, WebhooksReady
from agentflow_openai.provider import ABOUT_WORK, provider

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NAME = "agentflow"
SAMPLE: Any = "response.completed"


@provider.set_up_webhooks
async def set_up(setup: WebhookSetup) -> WebhooksReady:
    """One endpoint at this URL, for the types that tell the end of work. OpenAI shows its secret
    when it is made and when it is rotated; the old one then signs along for 24 hours."""
    from agentflow_openai.session import session

    async with session(setup, create=False) as client:
        there = await _at(client, setup.url)
        if there is None:
            types: Any = sorted(ABOUT_WORK)
            made = await client.webhooks.create(name=NAME, url=setup.url, event_types=types)
            return _ready(f"endpoint {made.id} made for {setup.url}", made.signing_secret)
        if missing := ABOUT_WORK - set(there.event_types):
            types = sorted({*there.event_types, *missing})
            await client.webhooks.update(there.id, event_types=types)
        if not setup.rotate:
            more = f"; it now tells of {', '.join(sorted(missing))}" if missing else ""
            return WebhooksReady(note=f"endpoint {there.id} is there for {setup.url}{more}")
        rotated = await client.webhooks.rotate_secret(
            there.id, keep_old_secret_active_for_24_hours=True
        )
        note = f"endpoint {there.id} has a new secret; the old one signs along for 24 hours"
        return _ready(note, rotated.signing_secret, keep_old=True)


@provider.test_webhooks
async def test(setup: WebhookSetup) -> int:
    """The status that OpenAI's sample was answered with."""
    from agentflow_openai.session import session

    async with session(setup, create=False) as client:
        there = await _at(client, setup.url)
        if there is None:
            raise InvalidInput(f"OpenAI has no endpoint for {setup.url}: set it up first")
        return (await client.webhooks.test(there.id, event_type=SAMPLE)).status_code


def _ready(note: str, secret: str, *, keep_old: bool = False) -> WebhooksReady:
    return WebhooksReady(note=note, field="webhook_secret", key=secret, keep_old=keep_old)


async def _at(client: AsyncOpenAI, url: str) -> Any:
    async for endpoint in client.webhooks.list(limit=100):
        if endpoint.url == url:
            return endpoint
    return None
