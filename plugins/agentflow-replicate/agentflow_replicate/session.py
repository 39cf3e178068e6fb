"""Replicate through its own SDK, without the SDK's retries, missing timeouts and blind spots.

This module loads the SDK and httpx, so it is imported by the calls only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from replicate.client import Client
from replicate.exceptions import ReplicateError

from agentflow import AuthenticationFailed, InvalidInput, OutcomeUnknown, ProviderFailure
from agentflow_replicate.facts import identity
from agentflow_replicate.failures import failure

if TYPE_CHECKING:
    from agentflow import Call
    from agentflow_replicate.settings import ReplicateSettings

TIMEOUT = httpx.Timeout(connect=5, read=30, write=30, pool=10)
MARGIN = 0.05
"""The share of the call's time that is kept, to say what happened before the worker cuts it off."""

EVENTS = ["start", "logs", "completed"]
"""`logs` carry the progress bars; Replicate sends at most two a second, and retries none."""

_ID = re.compile(r"[A-Za-z0-9_-]+")


class Wire(httpx.AsyncBaseTransport):
    """Sits below the SDK and above the worker's shared connections.

    - Each request ends by `until`, a time of the event loop: the SDK sets no timeout on creates
      and uploads.
    - An answer that is not 2xx is raised here, below the SDK's retries, which would wait and
      repeat for minutes; its cause holds the headers, which the SDK's error lacks.
    - `answer` is the JSON of the last 2xx, whatever the SDK's models think of it: they refuse the
      status `aborted` and a null `version`, and a create's answer must not be lost to that.
    - `creating` says whether the last request was a create.
    """

    def __init__(self, http: httpx.AsyncClient, until: float) -> None:
        self.http, self.until = http, until
        self.answer: Any = None
        self.creating = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.answer = None
        self.creating = request.method == "POST" and request.url.path.endswith("/predictions")
        request.extensions = {**request.extensions, "timeout": TIMEOUT.as_dict()}
        async with asyncio.timeout_at(self.until):
            response = await self.http.send(request, follow_redirects=False)
        if not response.is_success:
            raise _problem(response) from httpx.HTTPStatusError(
                f"status {response.status_code}", request=request, response=response
            )
        self.answer = response.json()
        return httpx.Response(response.status_code, content=response.content)


class Session:
    """What one call asks of Replicate. Everything raises `ProviderFailure`, and returns JSON."""

    def __init__(self, call: Call) -> None:
        settings: ReplicateSettings = call.settings
        token = settings.api_token.get_secret_value()
        if not token:
            raise AuthenticationFailed("REPLICATE_API_TOKEN is not set.")
        until = asyncio.get_running_loop().time() + call.timeout * (1 - MARGIN)
        self.wire = Wire(call.http, until)
        self.client = Client(token, base_url=settings.base_url, transport=self.wire)

    async def create(
        self, target: Mapping[str, str], input: dict[str, Any], webhook: str | None
    ) -> dict[str, Any]:
        """Make a prediction; this is what costs money.

        `target` is one of `model`, `version` and `deployment`. Files in `input` (`io.IOBase`) are
        uploaded first. Raises `OutcomeUnknown` if the prediction may exist all the same.
        """
        arguments: dict[str, Any] = {**target, "input": input}
        if webhook is not None:
            arguments |= {"webhook": webhook, "webhook_events_filter": EVENTS}
        made = await self._ask(self.client.predictions.async_create(**arguments), create=True)
        if identity(made) is None:
            raise OutcomeUnknown("Replicate took the call and named no prediction.")
        return dict(made)

    async def get(self, id: str) -> dict[str, Any] | None:
        """The prediction; None if there is none."""
        return await self._one(id, self.client.predictions.async_get)

    async def cancel(self, id: str) -> dict[str, Any] | None:
        """The prediction after it was asked to stop; None if there is none."""
        return await self._one(id, self.client.predictions.async_cancel)

    async def page(self, query: str | None = None) -> tuple[list[Any], str | None]:
        """Predictions, newest first, and the `query` of the next page."""
        listing = self.client.predictions.async_list
        # Of the address that Replicate gives for the next page only the query is used, so that the
        # token goes nowhere else.
        asked = listing() if query is None else listing(f"/v1/predictions?{query}")
        page = await self._ask(asked)
        results = page.get("results") if isinstance(page, dict) else None
        following = page.get("next") if isinstance(page, dict) else None
        more = urlsplit(following).query if isinstance(following, str) else None
        return (results if isinstance(results, list) else []), more or None

    async def _one(self, id: str, ask: Any) -> dict[str, Any] | None:
        if not _ID.fullmatch(id):
            return None
        try:
            found = await self._ask(ask(id))
        except ProviderFailure as refused:
            if refused.detail.get("status") in (404, 410):
                return None
            raise
        return found if isinstance(found, dict) else None

    async def _ask(self, asking: Awaitable[object], *, create: bool = False) -> Any:
        """The JSON of the answer. An error that the SDK makes of a 2xx does not count."""
        try:
            await asking
        except Exception as error:
            if self.wire.answer is None or self.wire.creating is not create:
                raise self._failure(error) from error
        return self.wire.answer

    def _failure(self, error: Exception) -> ProviderFailure:
        sent = self.wire.creating
        said = f"{type(error).__name__}: {error}"[:500]
        return failure(error, create=sent) or (
            OutcomeUnknown(said) if sent else InvalidInput(f"Before the call was made: {said}")
        )


def _problem(response: httpx.Response) -> ReplicateError:
    """The SDK's own error; it expects a JSON object and stumbles over other JSON."""
    try:
        return ReplicateError.from_response(response)
    except AttributeError:
        return ReplicateError(status=response.status_code, detail=response.text[:200])
