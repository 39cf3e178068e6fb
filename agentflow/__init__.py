"""agentflow runs slow, paid, unreliable provider calls and never loses track of one.

The names below are the whole public surface. They load on first use, so that importing
agentflow costs a plugin or a script nothing it does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentflow import types

__version__ = types.VERSION

_PLACES = {
    "Accepted": "agentflow.core.events",
    "AddressRefused": "agentflow.artifacts.errors",
    "AgentFlow": "agentflow.app",
    "Artifact": "agentflow.core.results",
    "AsyncClient": "agentflow.client",
    "AuthenticationFailed": "agentflow.errors",
    "Call": "agentflow.worker.call",
    "CallTimeout": "agentflow.errors",
    "Canceled": "agentflow.core.events",
    "Changed": "agentflow.core.events",
    "Client": "agentflow.client",
    "ContentRejected": "agentflow.errors",
    "Cost": "agentflow.core.results",
    "Delivery": "agentflow.core.providers",
    "Ed25519Jwks": "agentflow.webhooks.jwks",
    "Fact": "agentflow.core.providers",
    "Failed": "agentflow.core.events",
    "Hmac": "agentflow.webhooks.hmacs",
    "InvalidInput": "agentflow.errors",
    "JobEvent": "agentflow.writer.handlers",
    "JobFailed": "agentflow.errors",
    "JobSpec": "agentflow.core.submission",
    "JobTimeout": "agentflow.errors",
    "KeysUnavailable": "agentflow.errors",
    "Limit": "agentflow.core.limits",
    "ModelMessage": "agentflow.core.language",
    "ModelReply": "agentflow.core.language",
    "ModelRequest": "agentflow.core.language",
    "ModelTool": "agentflow.core.language",
    "OutcomeUnknown": "agentflow.errors",
    "PermissionRefused": "agentflow.errors",
    "Policy": "agentflow.core.policy",
    "Price": "agentflow.core.pricing",
    "Progressed": "agentflow.core.events",
    "Provider": "agentflow.core.providers",
    "ProviderError": "agentflow.errors",
    "ProviderFailure": "agentflow.errors",
    "QuotaExceeded": "agentflow.errors",
    "RateLimited": "agentflow.errors",
    "Result": "agentflow.core.results",
    "ResultLost": "agentflow.errors",
    "Settings": "agentflow.settings",
    "SettingsError": "agentflow.errors",
    "SignatureError": "agentflow.errors",
    "StandardWebhooks": "agentflow.webhooks.signatures",
    "StaticHeader": "agentflow.webhooks.static",
    "Succeeded": "agentflow.core.events",
    "ToolCall": "agentflow.core.language",
    "Unavailable": "agentflow.errors",
    "UnknownKey": "agentflow.errors",
    "Unstorable": "agentflow.errors",
    "Verified": "agentflow.core.providers",
    "WebhookEvent": "agentflow.writer.handlers",
    "WebhookSetup": "agentflow.core.providers",
    "WebhooksReady": "agentflow.core.providers",
    "guarded_client": "agentflow.artifacts.guard",
    "hookimpl": "agentflow.plugins.hookspecs",
    "scheme_of": "agentflow.webhooks.declared",
}

__all__ = sorted([*_PLACES, "__version__"])  # read by a test and by `dir`

if TYPE_CHECKING:
    from agentflow.app import AgentFlow as AgentFlow
    from agentflow.artifacts.errors import AddressRefused as AddressRefused
    from agentflow.artifacts.guard import guarded_client as guarded_client
    from agentflow.client import AsyncClient as AsyncClient
    from agentflow.client import Client as Client
    from agentflow.core.events import Accepted as Accepted
    from agentflow.core.events import Canceled as Canceled
    from agentflow.core.events import Changed as Changed
    from agentflow.core.events import Failed as Failed
    from agentflow.core.events import Progressed as Progressed
    from agentflow.core.events import Succeeded as Succeeded
    from agentflow.core.language import ModelMessage as ModelMessage
    from agentflow.core.language import ModelReply as ModelReply
    from agentflow.core.language import ModelRequest as ModelRequest
    from agentflow.core.language import ModelTool as ModelTool
    from agentflow.core.language import ToolCall as ToolCall
    from agentflow.core.limits import Limit as Limit
    from agentflow.core.policy import Policy as Policy
    from agentflow.core.pricing import Price as Price
    from agentflow.core.providers import Delivery as Delivery
    from agentflow.core.providers import Fact as Fact
    from agentflow.core.providers import Provider as Provider
    from agentflow.core.providers import Verified as Verified
    from agentflow.core.providers import WebhookSetup as WebhookSetup
    from agentflow.core.providers import WebhooksReady as WebhooksReady
    from agentflow.core.results import Artifact as Artifact
    from agentflow.core.results import Cost as Cost
    from agentflow.core.results import Result as Result
    from agentflow.core.submission import JobSpec as JobSpec
    from agentflow.errors import AuthenticationFailed as AuthenticationFailed
    from agentflow.errors import CallTimeout as CallTimeout
    from agentflow.errors import ContentRejected as ContentRejected
    from agentflow.errors import InvalidInput as InvalidInput
    from agentflow.errors import JobFailed as JobFailed
    from agentflow.errors import JobTimeout as JobTimeout
    from agentflow.errors import KeysUnavailable as KeysUnavailable
    from agentflow.errors import OutcomeUnknown as OutcomeUnknown
    from agentflow.errors import PermissionRefused as PermissionRefused
    from agentflow.errors import ProviderError as ProviderError
    from agentflow.errors import ProviderFailure as ProviderFailure
    from agentflow.errors import QuotaExceeded as QuotaExceeded
    from agentflow.errors import RateLimited as RateLimited
    from agentflow.errors import ResultLost as ResultLost
    from agentflow.errors import SettingsError as SettingsError
    from agentflow.errors import SignatureError as SignatureError
    from agentflow.errors import Unavailable as Unavailable
    from agentflow.errors import UnknownKey as UnknownKey
    from agentflow.errors import Unstorable as Unstorable
    from agentflow.plugins.hookspecs import hookimpl as hookimpl
    from agentflow.settings import Settings as Settings
    from agentflow.webhooks.declared import scheme_of as scheme_of
    from agentflow.webhooks.hmacs import Hmac as Hmac
    from agentflow.webhooks.jwks import Ed25519Jwks as Ed25519Jwks
    from agentflow.webhooks.signatures import StandardWebhooks as StandardWebhooks
    from agentflow.webhooks.static import StaticHeader as StaticHeader
    from agentflow.worker.call import Call as Call
    from agentflow.writer.handlers import JobEvent as JobEvent
    from agentflow.writer.handlers import WebhookEvent as WebhookEvent


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'agentflow' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
