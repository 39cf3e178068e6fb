"""The secret Replicate signs the account's webhooks with, brought home over its own API."""

from __future__ import annotations

from agentflow import AuthenticationFailed, ProviderError, WebhookSetup, WebhooksReady
from agentflow_replicate.provider import provider
from agentflow_replicate.settings import ReplicateSettings


@provider.set_up_webhooks
async def set_up(setup: WebhookSetup) -> WebhooksReady:
    """Each prediction names its own URL, so the secret is all there is to set up. Replicate makes
    it, and a new one only on its page."""
    settings: ReplicateSettings = setup.settings
    token = settings.api_token.get_secret_value()
    if not token:
        raise AuthenticationFailed("REPLICATE_API_TOKEN is not set.")
    if setup.rotate:
        raise ProviderError("Replicate makes a new secret on its page alone, not over its API.")
    answer = await setup.http.get(
        f"{settings.base_url}/v1/webhooks/default/secret",
        headers={"authorization": f"Bearer {token}"},
    )
    key = answer.json().get("key") if answer.status_code == 200 else None
    if not isinstance(key, str):
        raise ProviderError(f"Replicate answered {answer.status_code} and gave no secret.")
    return WebhooksReady(note="the account's secret is here", field="webhook_secret", key=key)
