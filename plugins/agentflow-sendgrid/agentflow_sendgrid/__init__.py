"""SendGrid for agentflow: the task `sendgrid.send`, a mail followed to its delivery."""

from __future__ import annotations

from agentflow import Provider, hookimpl
from agentflow_sendgrid import endpoint  # noqa: F401 - it says how webhooks are set up
from agentflow_sendgrid.events import fact
from agentflow_sendgrid.mail import Mail
from agentflow_sendgrid.provider import provider
from agentflow_sendgrid.settings import SendGridSettings
from agentflow_sendgrid.signature import EventWebhook

__all__ = [
    "EventWebhook",
    "Mail",
    "SendGridSettings",
    "agentflow_providers",
    "fact",
    "provider",
]


@hookimpl
def agentflow_providers() -> list[Provider]:
    return [provider]
