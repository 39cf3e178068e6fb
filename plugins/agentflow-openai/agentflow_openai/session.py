"""OpenAI through its own SDK, without the SDK's retries: a call that may have been paid for is
repeated by the machine or not at all.

This module loads the SDK and its HTTP client, so it is imported by the calls only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from agentflow import AuthenticationFailed, InvalidInput, OutcomeUnknown, ProviderFailure
from agentflow_openai.failures import failure

if TYPE_CHECKING:
    import ssl

    from agentflow import Call, WebhookSetup
    from agentflow_openai.settings import OpenAISettings

CONNECT = 10.0
MARGIN = 0.05
"""The share of the call's time that is kept, to say what happened before the worker cuts it off."""


@asynccontextmanager
async def session(call: Call | WebhookSetup, *, create: bool = True) -> AsyncIterator[AsyncOpenAI]:
    """The SDK's client for this call. Whatever the block raises becomes a `ProviderFailure`;
    `create` says that the block asks for something that is paid for."""
    settings: OpenAISettings = call.settings
    key = settings.api_key.get_secret_value()
    if not key:
        raise AuthenticationFailed("OPENAI_API_KEY is not set.")
    timeout = httpx2.Timeout(call.timeout * (1 - MARGIN), connect=CONNECT)
    sent: list[object] = []

    async def note(request: object) -> None:
        sent.append(request)

    try:
        async with AsyncOpenAI(
            api_key=key,
            base_url=settings.base_url,
            organization=settings.org_id,
            project=settings.project_id,
            max_retries=0,
            timeout=timeout,
            http_client=DefaultAsyncHttpxClient(
                verify=_authorities(),
                timeout=timeout,
                follow_redirects=False,
                event_hooks={"request": [note]},
            ),
        ) as client:
            yield client
    except ProviderFailure:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:500]
        if not sent and failure(error) is None:
            raise InvalidInput(f"The request cannot be made. {said}") from error
        raise failure(error, create=create) or OutcomeUnknown(said) from error


@cache  # reading the certificates takes longer than the call's whole overhead
def _authorities() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def plain(model: Any) -> dict[str, Any]:
    """An object of the SDK as the JSON it came from, unknown members too. Raises `OutcomeUnknown`
    for what the SDK made none of: the page of somebody else, say."""
    if not hasattr(model, "model_dump"):
        raise OutcomeUnknown("What answered is not OpenAI's API. Is OPENAI_BASE_URL right?")
    found: dict[str, Any] = model.model_dump(mode="json", warnings=False)
    return found
