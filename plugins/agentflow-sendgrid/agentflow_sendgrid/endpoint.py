"""The account's Event Webhook, made and tried over SendGrid's own API ("Webhooks" of its v3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentflow import AuthenticationFailed, InvalidInput, ProviderError, WebhookSetup, WebhooksReady
from agentflow_sendgrid.events import LATER, UNDER_WAY
from agentflow_sendgrid.failures import refusal
from agentflow_sendgrid.provider import provider
from agentflow_sendgrid.settings import SendGridSettings

if TYPE_CHECKING:
    import httpx

EVENTS = sorted({*UNDER_WAY, *LATER, "delivered", "bounce", "dropped"})
SPELLED = {"spamreport": "spam_report"}
"""What the settings call an event, where they call it otherwise."""


@provider.set_up_webhooks
async def set_up(setup: WebhookSetup) -> WebhooksReady:
    """An Event Webhook at this URL that is signed; events it has are added, none is taken away."""
    if setup.rotate:
        raise ProviderError("Make a new Event Webhook at SendGrid: a key lasts as long as its own.")
    there = await _at(setup)
    wanted = {SPELLED.get(name, name): True for name in EVENTS}
    if there is None:
        body = {"enabled": True, "url": setup.url, "friendly_name": "agentflow", **wanted}
        there = await _ask(setup, "POST", "settings", body)
        note = f"Event Webhook made for {setup.url}"
    else:
        changes = {name: True for name in wanted if there.get(name) is not True}
        if changes or there.get("enabled") is not True:
            body = {"enabled": True, "url": setup.url, **changes}
            await _ask(setup, "PATCH", f"settings/{there.get('id')}", body)
        note = f"Event Webhook is there for {setup.url}"
    signed = await _ask(setup, "PATCH", f"settings/signed/{there.get('id')}", {"enabled": True})
    key = signed.get("public_key")
    if not isinstance(key, str) or not key:
        raise ProviderError("SendGrid shows no public key; its page does.")
    return WebhooksReady(note=note, field="webhook_public_key", key=key)


@provider.test_webhooks
async def test(setup: WebhookSetup) -> None:
    """Have a batch of samples sent; SendGrid does not say how it was answered."""
    there = await _at(setup)
    if there is None:
        raise InvalidInput(f"SendGrid has no Event Webhook for {setup.url}: set it up first.")
    await _ask(setup, "POST", "test", {"id": there.get("id"), "url": setup.url})


async def _at(setup: WebhookSetup) -> dict[str, Any] | None:
    found = (await _ask(setup, "GET", "settings/all")).get("webhooks")
    for each in found if isinstance(found, list) else ():
        if isinstance(each, dict) and each.get("url") == setup.url:
            return each
    return None


async def _ask(setup: WebhookSetup, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """The JSON of the answer. Raises `ProviderFailure`."""
    settings: SendGridSettings = setup.settings
    key = settings.api_key.get_secret_value()
    if not key:
        raise AuthenticationFailed("SENDGRID_API_KEY is not set.")
    answer: httpx.Response = await setup.http.request(
        method,
        f"{settings.base_url}/v3/user/webhooks/event/{path}",
        json=body,
        headers={"authorization": f"Bearer {key}"},
    )
    if not answer.is_success:
        raise refusal(answer.status_code, answer.content, answer.headers)
    said = answer.json() if answer.content else {}
    return said if isinstance(said, dict) else {}
