"""The plugin against the suite, which is all there is to say that it is done."""

from __future__ import annotations

import json
from typing import Any

from agentflow_sendgrid import provider
from agentflow_sendgrid.simulator import SendGridSimulator

from agentflow.testing import Ends, Order, PluginConformance


def mail(**script: Any) -> dict[str, Any]:
    """A mail that fares as the script says; it has a copy, which nobody follows."""
    return {
        "to": "Ada@example.com",
        "cc": ["copy@example.com"],
        "sender": "shop@example.com",
        "subject": "Hello",
        "text": "Hi",
        "attachments": [{"filename": "cat.png", "artifact": b"\x89PNG\r\n\x1a\n"}],
        "custom_args": {"simulate": json.dumps(script)},
    }


class TestSendGrid(PluginConformance):
    provider = provider
    simulator = staticmethod(lambda: SendGridSimulator(key="SG.of-the-conformance-suite"))
    webhook_setting = "SENDGRID_WEBHOOK_PUBLIC_KEY"
    tolerance = 172_800.0
    orders = (
        Order(
            "send",
            mail(deferred=1, junk=True),
            later=True,
            result={"output": {"event": "delivered", "email": "Ada@example.com"}},
            ends=(
                Ends(mail(ends="bounce"), error="provider_error"),
                Ends(mail(ends="dropped"), error="provider_error"),
                Ends(mail(later=["open", "click"]), "succeeded"),
                Ends(
                    {**mail(ends="never"), "wait_for": "acceptance"},
                    "succeeded",
                    result={"output": {"event": "accepted"}},
                ),
            ),
            refused=(
                {**mail(), "to": "nobody"},
                {**mail(), "subject": None},
                {**mail(), "custom_args": {"agentflow_token": "x"}},
            ),
        ),
    )
