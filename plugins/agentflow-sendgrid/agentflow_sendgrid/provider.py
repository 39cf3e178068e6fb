"""The provider `sendgrid` and its one task, `sendgrid.send`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentflow import (
    Accepted,
    AuthenticationFailed,
    Delivery,
    Policy,
    Provider,
    Result,
)
from agentflow_sendgrid.events import facts
from agentflow_sendgrid.failures import refusal
from agentflow_sendgrid.mail import Mail, request_of
from agentflow_sendgrid.settings import SendGridSettings
from agentflow_sendgrid.signature import EventWebhook

if TYPE_CHECKING:
    from agentflow import Call, Fact

provider = Provider(
    "sendgrid",
    settings=SendGridSettings,
    keys="api_key",
    webhooks="account",
    scheme=EventWebhook(),
    max_body=4 * 1024 * 1024,
    description="Mail by SendGrid",
)

POLICY = Policy(timeout=30, deadline=76 * 3600.0)
"""A receiving server that is away is tried for 72 hours."""


@provider.task("send", input=Mail, policy=POLICY)
async def send(call: Call, input: Mail) -> Accepted | Result:
    """Send a mail and follow it to its delivery."""
    settings: SendGridSettings = call.settings
    key = settings.api_key.get_secret_value()
    if not key:
        raise AuthenticationFailed("SENDGRID_API_KEY is not set.")
    answer = await call.http.post(
        f"{settings.base_url}/v3/mail/send",
        json=await request_of(call, input),
        headers={"authorization": f"Bearer {key}"},
    )
    if answer.status_code != 202:
        raise refusal(answer.status_code, answer.content, answer.headers)
    id = answer.headers.get("x-message-id") or call.idempotency_key
    if input.wait_for == "acceptance" or not settings.webhook_public_key:
        return Result(output={"event": "accepted", "email": input.to, "sg_message_id": id})
    return Accepted(id)


@provider.parse
def parse(delivery: Delivery) -> list[Fact]:
    return facts(delivery)


@provider.type_of
def type_of(_: Delivery) -> str | None:
    """The events of a batch differ, so a batch is called by what it is."""
    return "events"
